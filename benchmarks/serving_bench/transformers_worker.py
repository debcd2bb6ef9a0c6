"""transformers' `generate` in a process of its own: a JSON command a line in, a JSON answer a line out.

It imports nothing of this project, so that nothing of it can slow the baseline down. Commands:
    {"command": "load", "checkpoint": PATH, "dtype": "fp32" | "bf16", "threads": N}
    {"command": "generate", "prompts": [[ID, ...], ...], "n_out": N}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class StepClock(StoppingCriteria):
    """Notes when each step's tokens are there; never stops anything."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Called by `generate` behind every step; input_ids [S, L], answers bool [S]."""
        self.times_s.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Worker:
    """The loaded model."""

    def __init__(self, checkpoint: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self._model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch_dtype)
        config = self._model.generation_config
        config.eos_token_id, config.pad_token_id = None, 0

    def describe(self) -> dict[str, str]:
        """Versions and the implementations that it chose by itself."""
        return {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "attention": str(self._model.config._attn_implementation),
            "experts": str(self._model.config._experts_implementation),
        }

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], n_out: int) -> dict[str, Any]:
        """Greedy tokens of one padded batch and the time of each step."""
        clock = StepClock()
        start_s = time.perf_counter()
        input_ids_SL = torch.tensor(prompts)
        output_SL = self._model.generate(
            input_ids_SL,
            attention_mask=torch.ones_like(input_ids_SL),
            do_sample=False,
            min_new_tokens=n_out,
            max_new_tokens=n_out,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return {
            "start_s": start_s,
            "step_times_s": clock.times_s,
            "token_ids": output_SL[:, input_ids_SL.shape[1] :].tolist(),
        }


def serve(commands: TextIO, answers: TextIO) -> None:
    """Answers commands until their end."""
    worker: Worker | None = None
    for line in commands:
        command = json.loads(line)
        if command["command"] == "load":
            worker = Worker(command["checkpoint"], command["dtype"], command["threads"])
            answer: dict[str, Any] = worker.describe()
        elif worker is None:
            raise RuntimeError("a generate command came before the load command")
        else:
            answer = worker.generate(command["prompts"], command["n_out"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # Libraries print to the standard output: only answers may go to the original one.
    answers_file = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers_file)
