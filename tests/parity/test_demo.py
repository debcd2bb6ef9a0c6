"""The demo checkpoint: trained weights, stored in bf16, with a multi-token-prediction layer to ignore."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from paged_sequences import PagedSequences
from tiny_checkpoints import load_reference, reference_logits
from tokenizers import Tokenizer
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 512
MODEL_CARD_BITS_PER_BYTE = 1.278


@pytest.fixture(scope="module")
def text(demo_checkpoint: Path) -> str:
    return (demo_checkpoint / "heldout.txt").read_text()


@pytest.fixture(scope="module")
def windows(demo_checkpoint: Path, text: str) -> list[list[int]]:
    """The held-out text in windows; each ends with a token that only serves as a target."""
    ids = Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json")).encode(text).ids
    return [ids[start : start + WINDOW + 1] for start in range(0, len(ids) - 1, WINDOW)]


def nats(logits_TV: Tensor, targets: list[int]) -> float:
    return float(torch.nn.functional.cross_entropy(logits_TV, torch.tensor(targets), reduction="sum"))


def test_logits_are_those_of_transformers(demo_checkpoint: Path, windows: list[list[int]]) -> None:
    theirs = load_reference(demo_checkpoint)
    batch = {str(i): window[:-1] for i, window in enumerate(windows[:2])}
    for name, logits_TV in PagedSequences(demo_checkpoint, n_blocks=300).step(batch).items():
        reference_TV = reference_logits(theirs, batch[name])
        torch.testing.assert_close(
            logits_TV.log_softmax(-1), reference_TV.log_softmax(-1), atol=1e-4, rtol=0
        )


def test_heldout_text_scores_what_the_model_card_says(
    demo_checkpoint: Path, text: str, windows: list[list[int]]
) -> None:
    ours = PagedSequences(demo_checkpoint, n_blocks=130)
    total_nats = 0.0
    for window in windows:
        ours.reset()
        total_nats += nats(ours.step({"a": window[:-1]})["a"], window[1:])
    bits_per_byte = total_nats / math.log(2) / len(text.encode())
    assert bits_per_byte == pytest.approx(MODEL_CARD_BITS_PER_BYTE, abs=0.001)


def test_bf16_scores_about_the_same(demo_checkpoint: Path, windows: list[list[int]]) -> None:
    window = windows[0]
    scores = {}
    for dtype in (torch.float32, torch.bfloat16):
        logits_TV = PagedSequences(demo_checkpoint, dtype=dtype).step({"a": window[:-1]})["a"]
        assert logits_TV.dtype == torch.float32
        scores[dtype] = nats(logits_TV, window[1:]) / WINDOW
    assert scores[torch.bfloat16] == pytest.approx(scores[torch.float32], abs=0.02)
