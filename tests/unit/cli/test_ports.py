"""Ports that are free, and stay so until somebody listens there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from expertmesh.cli import ports
from expertmesh.cli.errors import CliError
from expertmesh.configs.load import config_from_dict


def config(**sections):
    return config_from_dict({"model": {"path": "weights"}, **sections}, Path("/models"))


@pytest.fixture
def system_gives(monkeypatch, tmp_path):
    """`system_gives(first)`: the first of the ports that connections get by themselves."""
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "ip_local_port_range")
    return lambda first: ports.EPHEMERAL.write_text(f"{first}\t60999\n")


def test_port_0_becomes_a_free_port_and_others_stay():
    chosen = ports.with_free_ports(config(http={"port": 0}, grpc={"port": 0}))
    assert len({chosen.http.port, chosen.grpc.port} - {0}) == 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", chosen.http.port))
    assert ports.with_free_ports(config(http={"port": 7})).http.port == 7


def test_they_are_none_that_connections_get_and_none_that_is_taken(system_gives, monkeypatch):
    [first] = ports.free_ports(1)
    monkeypatch.setattr(ports, "FIRST_PORT", first)
    system_gives(first + 1)
    assert ports.free_ports(1) == [first]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        with pytest.raises(CliError, match="no free TCP ports are to be found"):
            ports.free_ports(1)


def test_where_connections_may_get_every_port_the_system_chooses(system_gives):
    system_gives(1024)
    assert len(set(ports.free_ports(3)) - {0}) == 3
