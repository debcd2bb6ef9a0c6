"""What a key may do, and what a route or an RPC asks for."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_STATED = "__expertmesh_access__"


class Access(IntEnum):
    """Higher ones may do whatever lower ones may."""

    OPEN = 0
    """Nobody needs a key."""
    USER = 1
    """Generates, and looks at the cluster."""
    ADMIN = 2
    """Changes the cluster, too."""


ROLES = {"user": Access.USER, "admin": Access.ADMIN}
"""The roles of keys by their names."""


def needs(access: Access) -> Callable[[F], F]:
    """States what the route or RPC below needs; one without a statement is refused to everybody."""

    def state(function: F) -> F:
        setattr(function, _STATED, access)
        return function

    return state


def stated_access(function: Any) -> Access | None:
    """What `needs` has stated; None when nobody has stated anything."""
    access: Access | None = getattr(function, _STATED, None)
    return access
