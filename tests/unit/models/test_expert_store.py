"""Experts that banks share: read once, and freed with the last bank, whatever goes wrong meanwhile."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.errors import CheckpointError, LoadCancelledError
from expertmesh.models.expert_store import ExpertStore
from expertmesh.models.experts import ExpertBank, all_experts, expert_bytes

OPTIONS: dict[str, Any] = {
    "mode": ComputeMode(),
    "dtype": torch.float32,
    "device": torch.device("cpu"),
}


class Case:
    """A store over a tiny checkpoint: two MoE layers of five experts."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.spec = self.checkpoint.spec
        self.options = OPTIONS | options
        self.store = ExpertStore(self.checkpoint, self.spec, **self.options)
        self.one_bytes = expert_bytes(self.spec, self.spec.moe_layers[0], torch.float32)

    def experts_read(self) -> int:
        """Since this was asked last."""
        n_experts, rest = divmod(self.checkpoint.bytes_read, self.one_bytes)
        assert rest == 0
        self.checkpoint.bytes_read = 0
        return n_experts

    def check(self, bank: ExpertBank) -> None:
        """Every slot gives the bits of a bank that was loaded by itself."""
        x_RD = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).to(self.options["dtype"])
        alone = ExpertBank.load(
            Checkpoint.open(self.checkpoint.directory), self.spec, bank.slots, **self.options
        )
        for layer, experts in enumerate(bank.slots):
            for slot in range(len(experts)):
                counts = [0] * len(experts)
                counts[slot] = 3
                assert torch.equal(bank.forward(layer, x_RD, counts), alone.forward(layer, x_RD, counts))


@pytest.fixture(params=["native", "torch"])
def case(tiny: Any, request: pytest.FixtureRequest) -> Case:
    return Case(tiny.write(3), mode=ComputeMode(native=request.param == "native"))


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Memory must come back at once, not when the collector finds cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("background", [False, True])
def test_only_what_is_missing_is_read(case: Case, background: bool) -> None:
    first = case.store.bank([[0, 1, 2], [3]])
    assert case.experts_read() == 4
    calls: list[tuple[int, int]] = []
    second = case.store.bank(
        [[2, 4], [3, 0, 4]], progress=lambda *call: calls.append(call), background=background
    )
    assert case.experts_read() == 3
    assert len(calls) == 9
    assert calls[-1] == (3 * case.one_bytes, 3 * case.one_bytes)
    assert case.store.n_held == 7
    case.check(first)
    case.check(second)
    again = case.store.bank([[4, 2], [0]], progress=lambda *call: calls.append(call))
    assert case.experts_read() == 0
    assert len(calls) == 9
    case.check(again)


def test_experts_go_with_the_last_bank(case: Case) -> None:
    first = case.store.bank([[0, 1, 2], [3]])
    second = case.store.bank([[2, 4], []])
    assert (case.store.n_held, case.store.held_bytes >= 5 * case.one_bytes) == (5, True)
    del first
    assert case.store.n_held == 2
    case.check(second)
    del second
    assert case.store.n_held == case.store.held_bytes == 0


def test_the_moment_to_drop_a_bank(case: Case) -> None:
    """What the next bank shares stays, the rest is gone before anything is read."""
    banks = [case.store.bank([[0, 1, 2], [3]])]
    case.experts_read()
    held: list[int] = []

    def before_reading() -> None:
        banks.clear()
        held.append(case.store.n_held)
        assert case.experts_read() == 0

    case.check(case.store.bank([[1, 4], [3]], before_reading=before_reading))
    assert held == [2]


def test_an_expert_twice_in_a_layer(case: Case) -> None:
    bank = case.store.bank([[3, 1, 3], []])
    assert case.experts_read() == case.store.n_held == 2
    case.check(bank)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("tensors_read", [0, 1, 4, 9])
def test_a_cancelled_load_leaves_nothing(case: Case, background: bool, tensors_read: int) -> None:
    live = case.store.bank([[0], [1]])
    calls: list[int] = []

    def cancelled() -> str | None:
        return "generation 7 was given up" if len(calls) >= tensors_read else None

    with pytest.raises(LoadCancelledError, match="generation 7 was given up"):
        case.store.bank(
            [[0, 1, 2], [3]],
            cancelled,
            progress=lambda done, total: calls.append(done),
            background=background,
        )
    assert len(calls) == tensors_read
    assert case.store.n_held == 2
    case.check(live)


def vanish(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def lose_the_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("spoil", [vanish, truncate, become_a_folder, lose_the_folder])
def test_a_checkpoint_that_becomes_unreadable(
    tiny: Any, tmp_path: Path, background: bool, spoil: Callable[[Path], None]
) -> None:
    """In the middle of a load: the error names the file, what is live stays, and a later try succeeds."""
    good = shutil.copytree(tiny.write(), tmp_path / "good")
    folder = shutil.copytree(good, tmp_path / "served", ignore=shutil.ignore_patterns("good"))
    case = Case(folder)
    live = case.store.bank([[0, 1], [1]])
    x_RD = torch.randn(4, 16)
    before = [live.forward(0, x_RD, [2, 2]), live.forward(1, x_RD, [4])]
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 4:
            spoil(folder / "model.safetensors")

    slots = all_experts(case.spec)
    with pytest.raises(CheckpointError, match=r"served/model\.safetensors.*tensor"):
        case.store.bank(slots, progress=progress, background=background)
    assert len(calls) < 3 * 7
    assert case.store.n_held == 3
    assert torch.equal(before[0], live.forward(0, x_RD, [2, 2]))
    assert torch.equal(before[1], live.forward(1, x_RD, [4]))
    for left in (folder, folder.with_name("elsewhere")):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(good, folder)
    case.check(case.store.bank(slots, background=background))
    case.check(live)


def test_two_loads_at_once(case: Case) -> None:
    """Both lack the same experts: each is read once, and one that is cancelled does not harm the other."""
    slots = all_experts(case.spec)
    first_reads, go_on = threading.Event(), threading.Event()

    def progress(done: int, total: int) -> None:
        first_reads.set()
        go_on.wait(30)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(case.store.bank, slots, progress=progress)
        assert first_reads.wait(30)
        second = pool.submit(case.store.bank, [layer[::-1] for layer in slots], background=True)
        third = pool.submit(case.store.bank, slots, lambda: "enough" if go_on.is_set() else None)
        go_on.set()
        case.check(first.result())
        case.check(second.result())
        with pytest.raises(LoadCancelledError, match="enough"):
            third.result()
    assert case.experts_read() == 10
    assert case.store.n_held == 10
    del first, second, third
    assert case.store.n_held == 0


@pytest.mark.parametrize("slots", [[[0]], [[0], [5]], [[-1], []]])
def test_slots_that_do_not_fit(case: Case, slots: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="MoE layer"):
        case.store.bank(slots)
    assert case.experts_read() == 0


def test_stores_of_other_types(tiny: Any) -> None:
    """Conversions go the same way in the background."""
    tiny.tensors = {name: tensor.to(torch.float16) for name, tensor in tiny.tensors.items()}
    case = Case(tiny.write(), dtype=torch.bfloat16)
    case.check(case.store.bank([[0, 1], [2]], background=True))


# Prints what is resident with all experts, with a quarter of them, and after ten changes to and fro.
SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.expert_store import ExpertStore

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

checkpoint = Checkpoint.open(Path(sys.argv[1]))
store = ExpertStore(checkpoint, checkpoint.spec, mode=ComputeMode(), dtype=torch.float32,
                    device=torch.device("cpu"))
halves = [[range(6), range(6)], [range(6, 12), range(6, 12)]]
bank = store.bank(halves[0])
del bank
empty = resident_bytes()
full = store.bank([range(12), range(12)])
print(resident_bytes() - empty)
bank = store.bank([[0, 4, 8], [1, 5, 9]])
del full
print(resident_bytes() - empty)
for i in range(10):
    bank = store.bank(halves[i % 2], background=True)
print(resident_bytes() - empty)
"""


def test_memory_comes_back(new_checkpoint: Callable[..., Any]) -> None:
    """24 experts of 3 MiB: the system sees at any time what the banks hold, give or take one expert."""
    folder = new_checkpoint(
        hidden_size=512,
        moe_intermediate_size=512,
        n_routed_experts=12,
        num_attention_heads=8,
        vocab_size=64,
    ).write()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], check=True, capture_output=True, text=True
    )
    expert = 3 * 512 * 512 * 4
    for n_bytes, n_experts in zip(map(int, done.stdout.split()), (24, 6, 12), strict=True):
        assert (n_experts - 1) * expert < n_bytes < (n_experts + 1.5) * expert


def test_a_bank_holds_no_more_than_its_experts(case: Case) -> None:
    """Neither tensors of the load nor the store's other experts hang on a bank."""
    bank = case.store.bank(all_experts(case.spec))
    gone = weakref.ref(bank)
    y_RD: Tensor = bank.forward(0, torch.ones(1, 16), _one_row(5))
    del bank
    assert gone() is None
    assert y_RD.shape == (1, 16)


def _one_row(n_slots: int) -> Sequence[int]:
    return [1] + [0] * (n_slots - 1)
