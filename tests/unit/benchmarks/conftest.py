"""Makes the benchmarks' packages importable without putting benchmarks/ on the path.

On the path, benchmarks/kernels.py would pass for the `kernels` package that other libraries look for.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def load_file(name: str, file: Path) -> None:
    """Imports a file, or a package by its __init__.py, under `name`."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


load_file("serving_bench", REPOSITORY / "benchmarks" / "serving_bench" / "__init__.py")
load_file("live_bench", REPOSITORY / "benchmarks" / "live_bench" / "__init__.py")
load_file("chaos_bench", REPOSITORY / "benchmarks" / "chaos_bench" / "__init__.py")
load_file("make_bench_checkpoint", REPOSITORY / "tools" / "make_bench_checkpoint.py")
load_file("quantised_benchmark", REPOSITORY / "benchmarks" / "quantised.py")
load_file("speculative_benchmark", REPOSITORY / "benchmarks" / "speculative.py")
