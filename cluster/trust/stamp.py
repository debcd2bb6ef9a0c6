"""Stamps prove that a call comes from a process that knows the cluster's secret, without telling it.

A stamp is `unix seconds, nonce, HMAC-SHA256(secret, all of it with method and audience)`. It counts for one
call of one method at one server, within MAX_AGE_S: whoever reads it on the wire can do nothing with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence

MAX_AGE_S = 300
"""Also how far the clocks of two nodes may be apart."""

Secrets = Callable[[], Sequence[str]]
"""Gives the secrets that count now; the first is the one to present."""


def make_stamp(secret: str, method: str, audience: str, unix_s: int, nonce: str) -> str:
    """The stamp of one call.

    Args:
        method: the RPC's full name, `/package.Service/Method`.
        audience: the address that is called.
        nonce: has never been used before.
    """
    mac = hmac.new(secret.encode(), f"{unix_s} {nonce} {method} {audience}".encode(), hashlib.sha256)
    return f"{unix_s} {nonce} {mac.hexdigest()}"


def new_stamp(secret: str, method: str, audience: str) -> str:
    """The stamp of a call that is made now."""
    return make_stamp(secret, method, audience, int(time.time()), secrets.token_hex(16))


class StampChecker:
    """A server's side.

    Args:
        accepted: the secrets that count.
        now: seconds since 1970.
    """

    def __init__(self, accepted: Secrets, now: Callable[[], float] = time.time) -> None:
        self._accepted = accepted
        self._now = now
        self._used: dict[str, float] = {}
        """Nonces, with the time of their call, in the order of their use."""

    def problem(self, stamp: str, method: str, audience: str) -> str:
        """Why a call with this stamp must be refused; empty when it is good."""
        if not stamp:
            return "no proof of knowing the cluster's secret"
        unix_s, _, rest = stamp.partition(" ")
        nonce, _, _ = rest.partition(" ")
        if not unix_s.isascii() or not unix_s.isdigit() or not nonce:
            return "a proof of another form than this version's"
        expected = [
            make_stamp(secret, method, audience, int(unix_s), nonce).encode() for secret in self._accepted()
        ]
        if sum(hmac.compare_digest(stamp.encode(), one) for one in expected) == 0:
            return "another cluster secret than ours"
        age_s = self._now() - int(unix_s)
        if abs(age_s) > MAX_AGE_S:
            return f"a clock that differs from ours by {abs(age_s):.0f} s"
        if nonce in self._used:
            return "a proof that was used before"
        self._used[nonce] = self._now()
        self._forget_old()
        return ""

    def _forget_old(self) -> None:
        oldest_s = self._now() - 2 * MAX_AGE_S  # of a call from the future, too
        for nonce, used_s in list(self._used.items()):
            if used_s >= oldest_s:
                break
            del self._used[nonce]
