"""The compiled kernels' threads: many callers, more threads than cores, children after a fork."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from expertmesh.kernels.grouped_ffn import GroupedFfn
from expertmesh.kernels.linear import Linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.native.library import native_library

pytestmark = pytest.mark.skipif(native_library() is None, reason="no gcc, or no AVX-512 with bf16")

ROWS = (1, 3, 40)


class Case:
    """Products of every kind, and their results on one thread."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        self.linear = Linear(randn(200, 96), randn(200), ComputeMode())
        self.ffn = GroupedFfn.from_stacks(randn(5, 144, 96), randn(5, 96, 72), ComputeMode())
        self.inputs = [randn(n, 96) for n in ROWS]
        self.expected = self.compute()

    def compute(self) -> list[Tensor]:
        """All results, on as many threads as torch has been told."""
        results = []
        for x_TK in self.inputs:
            split = [0, x_TK.shape[0] - x_TK.shape[0] // 3, 0, x_TK.shape[0] // 3, 0]
            results += [self.linear(x_TK), self.ffn(x_TK, split)]
        return results

    def check(self, rounds: int) -> None:
        """Raises AssertionError unless every round gives the same bits."""
        for _ in range(rounds):
            for got, expected in zip(self.compute(), self.expected, strict=True):
                assert torch.equal(got, expected)


@pytest.fixture
def case(dtype: torch.dtype) -> Case:
    return Case(dtype)


@pytest.mark.parametrize("threads", [2, 7])
def test_any_number_of_threads_computes_the_same(case: Case, threads: int) -> None:
    torch.set_num_threads(threads)
    case.check(rounds=200)


def test_callers_on_several_threads_do_not_disturb_each_other(case: Case) -> None:
    def caller(_: int) -> None:
        torch.set_num_threads(3)
        case.check(rounds=100)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(caller, range(4)))


def test_a_child_has_threads_of_its_own(case: Case) -> None:
    torch.set_num_threads(2)
    case.check(rounds=2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            case.check(rounds=20)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
