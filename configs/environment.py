"""The one place that reads the process environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

RAY_ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Ray's own variable: the cluster to join, HOST:PORT; `auto` finds one on this machine."""

API_KEY_VARIABLE = "EXPERTMESH_API_KEY"
"""The API key of commands that call a deployment, where no file is given."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment of a process says to expertmesh."""

    ray_address: str | None
    """The existing Ray cluster to serve on; None: start one."""
    api_key: str = ""
    """For calling a deployment; empty: none."""

    @classmethod
    def read(cls) -> Environment:
        """Reads the process environment. An empty variable counts as absent; so does `local`."""
        address = os.environ.get(RAY_ADDRESS_VARIABLE, "").strip()
        return cls(
            ray_address=address if address not in ("", "local") else None,
            api_key=os.environ.get(API_KEY_VARIABLE, "").strip(),
        )


@contextlib.contextmanager
def inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started in the block get these variables; what stood there before comes back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
