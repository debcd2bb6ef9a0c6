"""Who is let in: every route and RPC has a stated role, and the gate holds it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from api_keys import entry, key_text
from fastapi.routing import APIRoute
from grpc_health.v1 import health_pb2

from expertmesh.actors.gateway.access.gate import Gate, presented_key
from expertmesh.actors.gateway.access.key_file import keyring_of
from expertmesh.actors.gateway.access.keys import new_key
from expertmesh.actors.gateway.access.level import Access, stated_access
from expertmesh.actors.gateway.deployment import Gateway
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.formats.interface import ChatFormat
from expertmesh.proto.v1 import inference_pb2

pytestmark = pytest.mark.anyio

OPEN_ROUTES = {"/health", "/ui", "/ui/{name:path}"}
ADMIN_ROUTES = {f"/v1/cluster/{name}" for name in ("scale", "rebalance", "reload")}
OPEN_RPCS = {"grpc.health.v1.Health.Check", "grpc.health.v1.Health.Watch"}
ADMIN_RPCS = {f"expertmesh.v1.Cluster.{name}" for name in ("Scale", "Rebalance", "Reload")}
UNSERVED_RPCS = {"grpc.health.v1.Health.List"}
"""Serve's proxy answers that it knows no such method."""
NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def gate_of(tmp_path, *entries) -> Gate:
    keyring = keyring_of(key_text(*entries).encode(), tmp_path / "keys")
    return Gate(lambda: keyring, now=lambda: NOON)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_every_http_route_states_what_it_needs(gateway, http_app):
    async def fresh():
        raise NotImplementedError

    app = http_app(gateway.core(), ChatFormat(None), fresh)
    stated = {
        route.path: stated_access(route.endpoint) for route in app.routes if isinstance(route, APIRoute)
    }
    assert "/v1/chat/completions" in stated
    assert [path for path, access in stated.items() if access is None] == []
    assert {path for path, access in stated.items() if access is Access.OPEN} <= OPEN_ROUTES
    assert {path for path, access in stated.items() if access is Access.ADMIN} == ADMIN_ROUTES


def test_every_rpc_states_what_it_needs():
    files = (inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    stated = {
        method.full_name: stated_access(getattr(Gateway, method.name))
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        if method.full_name not in UNSERVED_RPCS
    }
    assert [name for name, access in stated.items() if access is None] == []
    assert {name for name, access in stated.items() if access is Access.OPEN} == OPEN_RPCS
    assert {name for name, access in stated.items() if access is Access.ADMIN} == ADMIN_RPCS


def test_without_keys_everything_is_open_that_states_its_need():
    gate = Gate()
    assert gate.admit({}, Access.ADMIN).access is Access.ADMIN
    with pytest.raises(GatewayError) as refused:
        gate.admit({}, None)
    assert refused.value.kind is ErrorKind.FORBIDDEN


@pytest.mark.parametrize(
    ("role", "needed", "kind"),
    [
        ("user", Access.OPEN, None),
        ("user", Access.USER, None),
        ("user", Access.ADMIN, ErrorKind.FORBIDDEN),
        ("admin", Access.USER, None),
        ("admin", Access.ADMIN, None),
        ("admin", None, ErrorKind.FORBIDDEN),
    ],
)
def test_a_role_suffices_or_does_not(tmp_path, role, needed, kind):
    key = new_key()
    gate = gate_of(tmp_path, entry(key, role, "it"))
    if kind is None:
        assert gate.admit(bearer(key), needed).key_name == ("" if needed is Access.OPEN else "it")
    else:
        with pytest.raises(GatewayError) as refused:
            gate.admit(bearer(key), needed)
        assert refused.value.kind is kind


@pytest.mark.parametrize("headers", [{}, bearer(""), bearer("em-x"), {"authorization": "Basic em-x"}])
def test_who_has_no_key_that_counts_is_unknown(tmp_path, headers):
    with pytest.raises(GatewayError) as refused:
        gate_of(tmp_path, entry(new_key())).admit(headers, Access.USER)
    assert refused.value.kind is ErrorKind.UNAUTHENTICATED
    assert "em-x" not in refused.value.message


def test_a_key_counts_until_it_expires(tmp_path):
    early, late = new_key(), new_key()
    gate = gate_of(
        tmp_path,
        entry(early, name="early", expires="2030-06-01T12:00:00Z"),
        entry(late, name="late", expires="2030-06-01T12:00:01Z"),
    )
    assert gate.admit(bearer(late), Access.USER).key_name == "late"
    with pytest.raises(GatewayError, match="expired") as refused:
        gate.admit(bearer(early), Access.USER)
    assert refused.value.kind is ErrorKind.UNAUTHENTICATED


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer em-1"},
        {"authorization": "bearer  em-1 "},
        {"x-api-key": "em-1"},
        {"authorization": "Basic abc", "x-api-key": "em-1"},
    ],
)
def test_a_key_is_presented_in_two_ways(headers):
    assert presented_key(headers) == "em-1"
