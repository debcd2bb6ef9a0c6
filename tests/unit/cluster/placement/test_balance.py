"""What a placement makes of a load."""

from __future__ import annotations

import pytest

from expertmesh.cluster.placement.balance import expected_host_rows, expected_rows, imbalance
from expertmesh.cluster.types import Placement


def test_each_copy_gets_an_equal_part() -> None:
    placement = Placement((((0, 2), (1, 0)), ((0,), (1, 2))))
    load = [[10.0, 3.0, 1.0], [4.0, 5.0, 6.0]]
    assert expected_rows(placement, load) == ((6.0, 8.0), (4.0, 11.0))
    assert expected_host_rows(placement, load) == (10.0, 19.0)


def test_imbalance_is_the_largest_over_the_mean() -> None:
    assert imbalance((10.0, 20.0)) == pytest.approx(4 / 3)
    assert imbalance((5, 5, 5)) == 1.0
    assert imbalance((0, 0)) == 1.0
    assert imbalance(()) == 1.0
