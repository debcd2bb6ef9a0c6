"""Trains the demo checkpoint: a small but real DeepSeek-V3 mixture-of-experts language model.

The text is the documentation of two Debian packages:

    apt-get download sqlite3-doc python3.11-doc
    dpkg -x sqlite3-doc_*.deb pages && dpkg -x python3.11-doc_*.deb pages
    python tools/train_demo.py prepare --pages pages --work run
    python tools/train_demo.py train --work run --out checkpoint --minutes 50   # or --steps N
    python tools/train_demo.py score --out checkpoint      # bits a byte of heldout.txt

It needs torch, numpy, safetensors and tokenizers. The committed checkpoint came out of a longer form of
this script, which also compiled the element-wise parts; configs/demo/MODEL_CARD.md tells of that run.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from demo_training import checkpoint, text, training

SQLITE_PAGES = Path("usr/share/doc/sqlite3")
PYTHON_PAGES = Path("usr/share/doc/python3.11/html")


def score(out: Path) -> None:
    """Prints nats a token and bits a byte of `heldout.txt`, in float32, in windows of 512 tokens."""
    torch.set_grad_enabled(False)
    model = checkpoint.load(out, torch.float32)
    held_out = (out / "heldout.txt").read_text()
    ids = np.array(Tokenizer.from_file(str(out / "tokenizer.json")).encode(held_out).ids)
    nats = training.loss(model, ids, 512)
    bits = nats * (len(ids) - 1) / math.log(2) / len(held_out.encode())
    print(f"{len(ids):,} tokens, {nats:.3f} nats a token, {bits:.3f} bits a byte")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["prepare", "train", "score"])
    parser.add_argument("--pages", type=Path, default=Path("pages"), help="the unpacked packages")
    parser.add_argument("--work", type=Path, default=Path("run"), help="tokens, tokenizer")
    parser.add_argument("--out", type=Path, default=Path("checkpoint"))
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes")
    parser.add_argument("--dtype", choices=sorted(training.DTYPES), default="bf16")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        pages = arguments.pages
        text.prepare(
            pages / SQLITE_PAGES, pages / PYTHON_PAGES, arguments.work, arguments.vocab, arguments.seed
        )
    elif arguments.command == "train":
        training.train(
            training.Plan(
                work=arguments.work,
                out=arguments.out,
                minutes=arguments.minutes,
                steps=arguments.steps,
                dtype=arguments.dtype,
                seed=arguments.seed,
            )
        )
    else:
        score(arguments.out)


if __name__ == "__main__":
    main()
