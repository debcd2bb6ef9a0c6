"""Multi-token-prediction modules: transformers' layers joined by hand, and the demo's card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from draft_checkpoints import DraftKind, DraftReference
from paged_sequences import PagedSequences
from serve_clients import random_prompt
from tiny_checkpoints import VOCAB
from tokenizers import Tokenizer
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4
WINDOW = 512
MODEL_CARD_ACCEPTANCE = 0.679


def assert_close(logits_TV: Tensor, reference_TV: Tensor) -> None:
    torch.testing.assert_close(
        logits_TV.log_softmax(-1), reference_TV.log_softmax(-1), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize(("kind", "n_tokens"), [("v3", 90), ("v3.2", 90), ("glm4-moe", 60), ("v4", 310)])
def test_drafts_are_those_of_the_reference(
    kind: DraftKind, n_tokens: int, draft_checkpoint: Callable[[DraftKind], Path]
) -> None:
    folder = draft_checkpoint(kind)
    ids = list(random_prompt(n_tokens, VOCAB, 3))
    expected, expected_drafts = DraftReference(folder).logits(ids)
    assert expected_drafts.std() > 0.5
    ours = PagedSequences(folder, n_blocks=256, drafts=True)
    at, logits, drafts = 0, [], []
    for size in (n_tokens // 2, 1, 7, n_tokens // 2 - 9):
        chunk = ids[at : at + size]
        at += size
        of_chunk, of_draft = ours.step_and_draft({"a": chunk}, {"a": ids[at]})
        logits.append(of_chunk["a"])
        drafts.append(of_draft["a"])
    assert at == n_tokens - 1
    assert_close(torch.cat(logits), expected)
    assert_close(torch.cat(drafts), expected_drafts)


def test_drafts_of_heldout_text_are_accepted_as_the_model_card_says(demo_checkpoint: Path) -> None:
    text = (demo_checkpoint / "heldout.txt").read_text()
    ids = Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json")).encode(text).ids
    ours = PagedSequences(demo_checkpoint, n_blocks=140, drafts=True)
    n_accepted = n_drafts = 0
    for start in range(0, len(ids) - 1, WINDOW):
        window = ids[start : start + WINDOW + 2]
        ours.reset()
        logits, drafts = ours.step_and_draft({"a": window[:-1]}, {"a": window[-1]})
        n_accepted += int((drafts["a"][:-1].argmax(-1) == logits["a"][1:].argmax(-1)).sum())
        n_drafts += len(window) - 2
    assert n_accepted / n_drafts == pytest.approx(MODEL_CARD_ACCEPTANCE, abs=0.002)
