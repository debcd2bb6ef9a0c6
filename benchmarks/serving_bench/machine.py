"""Describes the machine and the software, so that figures can be compared."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAGS_THAT_MATTER = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve"),
)
PACKAGES = ("torch", "ray", "transformers", "grpcio", "aiohttp")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a benchmark ran."""

    cpu_model: str
    cpu_flags: tuple[str, ...]
    """Of those that decide which kernels run."""
    cores_used: tuple[int, ...]
    cores_total: int
    l3_cache: str
    memory_gib: float
    kernel: str
    python: str
    packages: dict[str, str]
    commit: str
    """Of this repository; `+changes` when the working tree differs from it."""


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model name and the flags that matter, out of the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    model = fields.get("model name") or fields.get("cpu model") or "unknown"
    return model, tuple(flag for flag in FLAGS_THAT_MATTER if flag in flags)


def describe_machine(cores: Iterable[int], repository: Path) -> Machine:
    """Reads /proc, /sys, installed packages and git."""
    model, flags = parse_cpuinfo(Path("/proc/cpuinfo").read_text())
    l3_file = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return Machine(
        cpu_model=model,
        cpu_flags=flags,
        cores_used=tuple(sorted(cores)),
        cores_total=os.cpu_count() or 0,
        l3_cache=l3_file.read_text().strip() if l3_file.exists() else "unknown",
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _installed_version(name))},
        commit=_commit(repository),
    )


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(repository: Path) -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
