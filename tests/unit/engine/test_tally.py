"""Histograms in plain numbers."""

from expertmesh.engine.tally import Tally


def test_values_fall_into_the_buckets_that_prometheus_means():
    tally = Tally((1.0, 2.0, 5.0))
    for value in (0.0, 1.0, 1.5, 2.0, 5.0, 5.1, 100.0):
        tally.add(value)
    assert tally.take() == [2, 2, 1, 2]


def test_taking_begins_anew():
    tally = Tally((1.0,))
    tally.add(0.5)
    assert tally.take() == [1, 0]
    assert tally.take() == [0, 0]
