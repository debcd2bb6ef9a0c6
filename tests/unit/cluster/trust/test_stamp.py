"""Proofs of knowing the cluster's secret, by a clock that the test moves."""

from __future__ import annotations

import pytest
from set_clock import SetClock

from expertmesh.cluster.trust.stamp import MAX_AGE_S, StampChecker, make_stamp

SECRET, OTHER = "s" * 32, "o" * 32
METHOD, ADDRESS = "/a.B/C", "10.0.0.1:7"
NOW_S = 1_900_000_000


def stamp(
    secret: str = SECRET, method: str = METHOD, address: str = ADDRESS, at_s=NOW_S, nonce="n1"
) -> str:
    return make_stamp(secret, method, address, at_s, nonce)


def test_who_knows_the_secret_is_let_in_once_for_a_stamp():
    checker = StampChecker(lambda: (SECRET,), SetClock(NOW_S))
    assert checker.problem(stamp(), METHOD, ADDRESS) == ""
    assert "used before" in checker.problem(stamp(), METHOD, ADDRESS)
    assert checker.problem(stamp(nonce="n2"), METHOD, ADDRESS) == ""


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        ("", "no proof"),
        ("x", "another form"),
        (SECRET, "another form"),
        (stamp(OTHER), "another cluster secret"),
        (stamp(method="/a.B/D"), "another cluster secret"),
        (stamp(address="10.0.0.2:7"), "another cluster secret"),
        (stamp().replace("n1", "n2"), "another cluster secret"),
        (stamp().replace(str(NOW_S), str(NOW_S + 1)), "another cluster secret"),
        (stamp(at_s=NOW_S - MAX_AGE_S - 1), "a clock that differs"),
        (stamp(at_s=NOW_S + MAX_AGE_S + 1), "a clock that differs"),
        ("\u0661 n1 00", "another form"),
    ],
)
def test_others_are_not_and_hear_why(shown, problem):
    checker = StampChecker(lambda: (SECRET,), SetClock(NOW_S))
    found = checker.problem(shown, METHOD, ADDRESS)
    assert problem in found
    assert SECRET not in found


def test_nobody_is_let_in_before_there_is_a_secret():
    checker = StampChecker(lambda: (), SetClock(NOW_S))
    assert checker.problem(stamp(), METHOD, ADDRESS)
    assert checker.problem(stamp(secret=""), METHOD, ADDRESS)


def test_the_old_secret_counts_for_as_long_as_it_is_held():
    held = [OTHER, SECRET]
    checker = StampChecker(lambda: held, SetClock(NOW_S))
    assert checker.problem(stamp(), METHOD, ADDRESS) == ""
    assert checker.problem(stamp(OTHER, nonce="n2"), METHOD, ADDRESS) == ""
    held.remove(SECRET)
    assert checker.problem(stamp(nonce="n3"), METHOD, ADDRESS)


def test_what_has_been_used_is_remembered_while_it_could_be_used_again():
    clock = SetClock(NOW_S)
    checker = StampChecker(lambda: (SECRET,), clock)
    early = stamp(at_s=NOW_S + MAX_AGE_S)  # from a clock that is ahead
    assert checker.problem(early, METHOD, ADDRESS) == ""
    for step in range(1, 2 * MAX_AGE_S, 50):
        clock.now_s = NOW_S + step
        assert checker.problem(early, METHOD, ADDRESS)
        assert not checker.problem(stamp(at_s=int(clock.now_s), nonce=f"m{step}"), METHOD, ADDRESS)
    clock.now_s = NOW_S + 10 * MAX_AGE_S
    assert checker.problem(early, METHOD, ADDRESS)
    assert checker.problem(stamp(at_s=int(clock.now_s), nonce="last"), METHOD, ADDRESS) == ""
    assert len(checker._used) == 1
