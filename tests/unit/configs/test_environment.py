"""What the process environment says."""

from __future__ import annotations

import os

import pytest

from expertmesh.configs.environment import RAY_ADDRESS_VARIABLE, Environment, inherited


@pytest.mark.parametrize(
    ("value", "address"),
    [(None, None), ("", None), ("local", None), (" auto ", "auto"), ("10.0.0.1:6379",) * 2],
)
def test_ray_address(monkeypatch, value, address):
    monkeypatch.delenv(RAY_ADDRESS_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(RAY_ADDRESS_VARIABLE, value)
    assert Environment.read().ray_address == address


def test_variables_for_a_block(monkeypatch):
    monkeypatch.setenv("EXPERTMESH_TEST_KNOWN", "before")
    monkeypatch.delenv("EXPERTMESH_TEST_NEW", raising=False)
    with inherited({"EXPERTMESH_TEST_KNOWN": "a", "EXPERTMESH_TEST_NEW": "b"}):
        assert (os.environ["EXPERTMESH_TEST_KNOWN"], os.environ["EXPERTMESH_TEST_NEW"]) == ("a", "b")
    assert os.environ["EXPERTMESH_TEST_KNOWN"] == "before"
    assert "EXPERTMESH_TEST_NEW" not in os.environ
