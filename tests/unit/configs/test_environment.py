"""What the process environment says."""

from __future__ import annotations

import pytest

from expertmesh.configs.environment import RAY_ADDRESS_VARIABLE, Environment


@pytest.mark.parametrize(
    ("value", "address"),
    [(None, None), ("", None), ("local", None), (" auto ", "auto"), ("10.0.0.1:6379",) * 2],
)
def test_ray_address(monkeypatch, value, address):
    monkeypatch.delenv(RAY_ADDRESS_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(RAY_ADDRESS_VARIABLE, value)
    assert Environment.read().ray_address == address
