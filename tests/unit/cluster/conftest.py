"""Members and deployments for the cluster's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from expertmesh.cluster.types import MemberInfo, Role


def _member(name: str) -> MemberInfo:
    role = {"g": Role.GATEWAY, "r": Role.ROUTER, "e": Role.EXPERTS}[name[0]]
    return MemberInfo(
        incarnation=name,
        role=role,
        node="node-1",
        pid=100,
        device="cpu",
        stream_address=f"{name}:1" if role is Role.ROUTER else "",
        store_address=f"{name}:2",
        replica_id=f"replica-{name}",
    )


@pytest.fixture
def member() -> Callable[[str], MemberInfo]:
    """A member by name; the first letter says its role: g, r or e."""
    return _member
