"""Compiles the C kernels once a machine and user, and loads them.

The library is plain C behind ctypes: nothing of torch's or Python's ABI is in it. It has
threads of its own (src/parallel.h). Machines without gcc or AVX-512 with bf16 do without it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SOURCES = Path(__file__).parent / "src"
_CPU_FEATURES = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "fma"}
# The intrinsics are named one by one, so that a library in a shared home suits every machine that passes.
_INTRINSICS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16", "fma", "amx-tile", "amx-bf16")
_FLAGS = (
    *("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=off"),
    *("-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    *(f"-m{name}" for name in _INTRINSICS),
)
_COMPILE_TIMEOUT_S = 120.0

_log = logging.getLogger(__name__)


class NativeBuildError(RuntimeError):
    """The C kernels could not be compiled or loaded; the message says what was tried and why it failed."""


@dataclass(frozen=True, slots=True)
class NativeLibrary:
    """The loaded kernels."""

    functions: ctypes.CDLL
    amx: bool
    """Whether this machine multiplies bf16 matrices in AMX tiles, and lets this process do so."""


@functools.cache
def native_library() -> NativeLibrary | None:
    """The kernels, compiled on first use; None (and one line in the log that says why) without them."""
    missing = _CPU_FEATURES - _cpu_features()
    if missing:
        _log.info("computing with torch alone: this processor lacks %s", ", ".join(sorted(missing)))
        return None
    try:
        return load_library(build_library(Path.home() / ".cache" / "expertmesh"))
    except (NativeBuildError, OSError) as error:
        _log.warning("computing with torch alone, which is slower: %s", error)
        return None


def build_library(folder: Path) -> Path:
    """Compiles the sources into `folder`, unless the same has been done before; gives the library's path.

    Safe against other processes doing the same. Raises NativeBuildError.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NativeBuildError("gcc is not installed")
    sources = sorted(_SOURCES.glob("*.c"))
    digest = hashlib.sha256(" ".join([*_FLAGS, compiler]).encode())
    for path in [*sources, *sorted(_SOURCES.glob("*.h"))]:
        digest.update(path.read_bytes())
    library = folder / f"kernels-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / library.name
        command = [compiler, *_FLAGS, *map(str, sources), "-o", str(built), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise NativeBuildError(f"{' '.join(command)} failed:\n{error.stderr[-2000:]}") from error
        except subprocess.TimeoutExpired as error:
            raise NativeBuildError(f"{compiler} took longer than {_COMPILE_TIMEOUT_S:.0f} s") from error
        os.replace(built, library)
    return library


def load_library(path: Path) -> NativeLibrary:
    """Loads a compiled library. Raises OSError."""
    functions = ctypes.CDLL(str(path))
    return NativeLibrary(functions, amx=bool(functions.expertmesh_enable_amx()))


def _cpu_features() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()
