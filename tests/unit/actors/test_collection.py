"""What a process starts with is never looked through again."""

from __future__ import annotations

import gc

import pytest

from expertmesh.actors.collection import collection_paused, keep_all


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_within_and_what_is_there_is_kept():
    with collection_paused():
        assert not gc.isenabled()
        made = [[] for _ in range(10)]
        assert gc.get_freeze_count() == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)
    assert not any(one is made[0] for one in gc.get_objects()), "a collection passes over it"


def test_an_error_within_leaves_collection_on():
    with pytest.raises(LookupError), collection_paused():
        raise LookupError
    assert gc.isenabled()


def test_keeping_leaves_what_comes_later_to_collections():
    keep_all()
    later = []
    assert any(one is later for one in gc.get_objects())
