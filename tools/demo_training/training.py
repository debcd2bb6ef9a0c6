"""The training loop, and how well a model predicts a text."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demo_training import checkpoint
from demo_training.model import CONFIG, DeepseekV3

STEP_TOKENS = 4096
WINDOW_TOKENS = 256
LONG_WINDOW_TOKENS = 2048
LONG_EVERY = 12
"""Every so many steps the windows are long, so that long contexts are in distribution too."""
PEAK_RATE = 3e-3
WARMUP_STEPS = 60
WEIGHT_DECAY = 0.1
MTP_WEIGHT = 0.3
BALANCE_WEIGHT = 1e-4
BIAS_STEP = 1e-3
LOG_EVERY = 20
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Plan:
    """How long and how to train."""

    work: Path
    out: Path
    minutes: float
    steps: int
    """0: by `minutes`."""
    dtype: str
    seed: int


class Windows:
    """Endless shuffled windows of `tokens` + 2 tokens, at a new random offset each time round."""

    def __init__(self, ids: np.ndarray, tokens: int, seed: int) -> None:
        self._ids, self._tokens = ids, tokens
        self._generator = np.random.default_rng(seed)
        self._queue: list[int] = []

    def next(self, n: int) -> Tensor:
        """int64 [n, tokens + 2]."""
        while len(self._queue) < n:
            first = self._generator.integers(self._tokens)
            starts = np.arange(first, len(self._ids) - self._tokens - 2, self._tokens)
            if not len(starts):
                raise SystemExit(f"the training text is shorter than a window of {self._tokens} tokens")
            self._generator.shuffle(starts)
            self._queue = [*starts.tolist(), *self._queue]
        rows = [
            self._ids[start : start + self._tokens + 2] for start in (self._queue.pop() for _ in range(n))
        ]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def train(plan: Plan) -> None:
    """Trains from scratch on `plan.work` and saves the checkpoint into `plan.out`."""
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = DeepseekV3(CONFIG, DTYPES[plan.dtype]).to(device).train()
    optimizer = _optimizer(model)
    ids, validation = np.load(plan.work / "train.npy"), np.load(plan.work / "val.npy")
    short, long = Windows(ids, WINDOW_TOKENS, 1), Windows(ids, LONG_WINDOW_TOKENS, 2)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} tokens, {device}")
    started_s = time.monotonic()
    step = tokens = 0
    while (progress := _progress(plan, step, time.monotonic() - started_s)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, progress)
        is_long = step % LONG_EVERY == LONG_EVERY - 1
        windows = long if is_long else short
        batch = windows.next(STEP_TOKENS // (LONG_WINDOW_TOKENS if is_long else WINDOW_TOKENS)).to(device)
        main, mtp, balance = model.losses(batch)
        (main + MTP_WEIGHT * mtp + BALANCE_WEIGHT * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _balance(model, progress)
        step, tokens = step + 1, tokens + STEP_TOKENS
        if step % LOG_EVERY == 0 or step == plan.steps:
            rate = tokens / (time.monotonic() - started_s)
            losses = f"loss {main.item():.3f}, MTP loss {mtp.item():.3f}"
            print(f"step {step}: {100 * progress:.1f} %, {losses}, {rate:.0f} tokens/s", flush=True)
    checkpoint.save(model, plan.work, plan.out)
    print(f"saved {plan.out} after {step} steps; validation loss {loss(model, validation, 512):.4f}")


def _optimizer(model: DeepseekV3) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)


def _progress(plan: Plan, step: int, seconds: float) -> float:
    return step / plan.steps if plan.steps else seconds / (plan.minutes * 60)


def _rate(step: int, progress: float) -> float:
    """Warm-up, then a cosine to 5 % of the peak."""
    return PEAK_RATE * min(1, (step + 1) / WARMUP_STEPS) * (0.525 + 0.475 * math.cos(math.pi * progress))


@torch.no_grad()
def _balance(model: DeepseekV3, progress: float) -> None:
    """Balancing without an auxiliary loss: raises the bias of experts with too little load, lowers that of
    the others. Faster in the first tenth, where the untrained gate drifts; frozen at the end."""
    step = BIAS_STEP * (4 if progress < 0.1 else 1 if progress < 0.95 else 0)
    for part in model.moe_parts:
        load = part.load.float()
        part.gate.e_score_correction_bias += step * torch.sign(load.mean() - load)


@torch.no_grad()
def loss(model: DeepseekV3, ids: np.ndarray, window_tokens: int) -> float:
    """Nats a token over consecutive windows; the first token of a window is not predicted."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    device = model.lm_head.weight.device
    for start in range(0, len(ids) - 1, window_tokens):
        window = torch.from_numpy(ids[start : start + window_tokens + 1].astype(np.int64))[None].to(device)
        logits = model.lm_head(model.hidden(window[:, :-1])).float()[0]
        total += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        count += window.shape[1] - 1
    model.train(training)
    return total / count
