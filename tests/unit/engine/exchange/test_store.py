"""The store through which the ranks of a generation meet."""

from __future__ import annotations

import socket

import pytest
import torch.distributed as dist

from expertmesh.engine.exchange.rendezvous import Store


def test_it_listens_on_the_interface_it_was_given_and_on_no_other():
    store = Store("127.0.0.2")
    host, _, port = store.address.rpartition(":")
    assert host == "127.0.0.2"
    client = dist.TCPStore(host, int(port), None, is_master=False)
    client.set("a", "1")
    assert client.get("a") == b"1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=10).close()
