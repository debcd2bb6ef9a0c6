"""The compiled kernels: how they are built, and what only they promise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expertmesh.kernels.grouped_ffn import GroupedFfn
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.native.library import (
    NativeBuildError,
    NativeLibrary,
    build_library,
    load_library,
    native_library,
)
from expertmesh.kernels.native.ops import NativeOps

needs_library = pytest.mark.skipif(native_library() is None, reason="no gcc, or no AVX-512 with bf16")


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Standard normal values, the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@needs_library
def test_a_library_is_built_once(tmp_path: Path) -> None:
    path = build_library(tmp_path / "cache")
    written = path.stat().st_mtime_ns
    assert build_library(tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == written
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    load_library(path)


def test_without_a_compiler_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeBuildError, match="gcc is not installed"):
        build_library(tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho no such intrinsic >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeBuildError, match="no such intrinsic"):
        build_library(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert shutil.which("gcc") == str(compiler)


def ops_of(amx: bool) -> NativeOps:
    """The kernels with or without AMX, where the machine has it."""
    library = native_library()
    assert library is not None
    return NativeOps(NativeLibrary(library.functions, amx and library.amx))


@needs_library
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("n_rows", [1, 5, 16, 17, 31, 32, 33, 70])
@pytest.mark.parametrize(("n", "k"), [(64, 64), (17, 33), (80, 96), (130, 1)])
def test_both_instruction_sets(amx: bool, dtype: torch.dtype, n_rows: int, n: int, k: int) -> None:
    ops = ops_of(amx)
    x, w = randn(n_rows, k, dtype=dtype), randn(n, k, dtype=dtype, seed=1)
    packed = ops.pack([w])
    y = ops.linear(x, packed, None, torch.float32)
    expected = x.double() @ w.double().T
    assert (y - expected).abs().max() < 2e-5 * expected.abs().max()
    alone = torch.cat([ops.linear(row, packed, None, torch.float32) for row in x.split(1)])
    assert torch.equal(y, alone)


@needs_library
@pytest.mark.parametrize("amx", [False, True])
def test_experts_with_both_instruction_sets(amx: bool, dtype: torch.dtype) -> None:
    ops = ops_of(amx)
    x, gate_up, down = (
        randn(40, 64, dtype=dtype),
        randn(1, 96, 64, dtype=dtype, seed=1),
        randn(1, 64, 48, dtype=dtype, seed=2),
    )
    expected = GroupedFfn(gate_up.clone(), down.clone(), ComputeMode(native=False))(x, [40])
    turns = torch.cat([gate_up[0, i : i + 16] for i in (0, 48, 16, 64, 32, 80)])
    y = ops.grouped_ffn(x, ops.pack([turns]), ops.pack([down[0]]), [40])
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    assert (y.float() - expected.float()).abs().max() < tolerance * expected.float().abs().max()


@needs_library
@pytest.mark.parametrize("amx", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(amx: bool, dtype: torch.dtype) -> None:
    ops = ops_of(amx)
    x = randn(37, 96, dtype=dtype)
    linear = ops.pack([randn(200, 96, dtype=dtype, seed=1)])
    heads = ops.pack([randn(56, 24, dtype=dtype, seed=s) for s in range(4)])
    gate_up = ops.pack([randn(64, 96, dtype=dtype, seed=s) * 0.1 for s in range(3)])
    down = ops.pack([randn(96, 32, dtype=dtype, seed=s) * 0.1 for s in range(3)])
    cache = randn(9, 4, 24, dtype=dtype)
    tables = torch.randperm(9, generator=torch.Generator().manual_seed(0)).view(1, 9)

    def compute(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        attended = torch.zeros(5, 4, 16, dtype=dtype)
        ops.attention(
            x.view(37, 4, 24)[:5],
            cache,
            attended,
            query_lens=(5,),
            context_lens=(30,),
            block_tables_SB=tables,
            softmax_scale=0.2,
            tile_keys=8,
        )
        return [
            ops.linear(x, linear, None, dtype),
            ops.head_product(x.view(37, 4, 24), heads, torch.empty(37, 4, 56, dtype=dtype)),
            ops.grouped_ffn(x, gate_up, down, [20, 0, 17]),
            attended,
        ]

    one = compute(1)
    for threads in (2, 3):
        for a, b in zip(one, compute(threads), strict=True):
            assert torch.equal(a, b)


@needs_library
def test_experts_keep_their_weights_in_the_memory_that_was_given() -> None:
    gate_up = randn(4, 64, 32, dtype=torch.bfloat16)
    down = randn(4, 32, 32, dtype=torch.bfloat16, seed=1)
    ffn = GroupedFfn(gate_up, down, ComputeMode())
    x = randn(4, 32, dtype=torch.bfloat16)
    before = ffn(x, [1, 1, 1, 1])
    gate_up.zero_()
    assert before.any()
    assert not ffn(x, [1, 1, 1, 1]).any()
