"""What each key has left of its limits, at this gateway.

Requests and tokens are token buckets of one minute's worth. A request is admitted while there is anything
left; its prompt is taken at once and its answer as it grows, so that the last one may leave a debt, which
the key waits out. Nothing has to be guessed, and over time a key gets what it is granted and no more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from expertmesh.actors.gateway.access.bucket import Bucket
from expertmesh.actors.gateway.access.gate import Caller
from expertmesh.actors.gateway.access.keys import ApiKey, KeyLimits
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError

AGAIN_S = 1.0
"""When to try again when too many requests run: nobody knows when one ends."""
MAX_IDLE_KEYS = 4096
"""Keys whose use is remembered although nothing of theirs runs."""


class _Use:
    """One key's use."""

    def __init__(self, limits: KeyLimits, n_gateways: int, now_s: float) -> None:
        self.limits = limits
        self.n_gateways = n_gateways
        self.running = 0
        self.requests = _bucket(limits.requests_per_minute, n_gateways, now_s)
        self.tokens = _bucket(limits.tokens_per_minute, n_gateways, now_s)

    def adjust(self, limits: KeyLimits, n_gateways: int, now_s: float) -> None:
        """Other limits, or another share of them."""
        if (limits, n_gateways) == (self.limits, self.n_gateways):
            return
        self.limits, self.n_gateways = limits, n_gateways
        self.requests = _adjusted(self.requests, limits.requests_per_minute, n_gateways, now_s)
        self.tokens = _adjusted(self.tokens, limits.tokens_per_minute, n_gateways, now_s)

    @property
    def most_running(self) -> float:
        most = self.limits.concurrent_requests
        return math.inf if most is None else max(most // self.n_gateways, 1)


class Spending:
    """A request that runs on a key's account."""

    def __init__(self, use: _Use | None, now: Callable[[], float]) -> None:
        self._use = use
        self._now = now

    def take_tokens(self, n_tokens: int) -> None:
        """The answer has grown."""
        if self._use is not None and self._use.tokens is not None:
            self._use.tokens.take(n_tokens, self._now())


class Meter:
    """Holds keys to their limits.

    Args:
        now: seconds on a clock that does not go back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._uses: dict[str, _Use] = {}
        self._n_gateways = 1

    def set_gateways(self, n_gateways: int) -> None:
        """How many gateways share every limit evenly."""
        n_gateways = max(n_gateways, 1)
        if n_gateways != self._n_gateways:
            self._n_gateways = n_gateways
            for use in self._uses.values():
                use.adjust(use.limits, n_gateways, self._now())

    def check(self, caller: Caller) -> None:
        """Returns when another request of the caller may begin now.

        Raises:
            GatewayError: RATE_LIMITED, with the time after which it may.
        """
        use = self._use_of(caller.key)
        if use is None:
            return
        now_s, limits = self._now(), use.limits
        name = caller.key_name
        if use.running >= use.most_running:
            running = f"{use.running} requests of the key {name!r} are running"
            raise _limited(f"{running}, and {limits.concurrent_requests} may", AGAIN_S)
        if use.requests is not None and (wait_s := use.requests.wait_s(1.0, now_s)) > 0:
            raise _limited(
                f"the key {name!r} may send {limits.requests_per_minute} requests a minute", wait_s
            )
        if use.tokens is not None and (wait_s := use.tokens.wait_s(1.0, now_s)) > 0:
            raise _limited(f"the key {name!r} may use {limits.tokens_per_minute} tokens a minute", wait_s)

    @contextmanager
    def spend(self, caller: Caller, n_prompt_tokens: int) -> Iterator[Spending]:
        """A request runs for as long as the block does.

        Raises:
            GatewayError: RATE_LIMITED, as `check`.
        """
        self.check(caller)
        use = self._use_of(caller.key)
        spending = Spending(use, self._now)
        if use is None:
            yield spending
            return
        if use.requests is not None:
            use.requests.take(1.0, self._now())
        spending.take_tokens(n_prompt_tokens)
        use.running += 1
        try:
            yield spending
        finally:
            use.running -= 1

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """`x-ratelimit-*`, as clients of OpenAI know them: of this gateway's share."""
        use = self._use_of(caller.key)
        headers: dict[str, str] = {}
        if use is None:
            return headers
        now_s = self._now()
        for what, bucket in (("requests", use.requests), ("tokens", use.tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(math.floor(bucket.capacity))
                left = max(math.floor(bucket.level(now_s)), 0)
                headers[f"x-ratelimit-remaining-{what}"] = str(left)
                headers[f"x-ratelimit-reset-{what}"] = f"{math.ceil(bucket.full_s(now_s))}s"
        return headers

    def _use_of(self, key: ApiKey | None) -> _Use | None:
        if key is None or key.limits == KeyLimits():
            return None
        use = self._uses.get(key.id)
        if use is None:
            self._forget_idle()
            use = self._uses[key.id] = _Use(key.limits, self._n_gateways, self._now())
        use.adjust(key.limits, self._n_gateways, self._now())
        return use

    def _forget_idle(self) -> None:
        """Full buckets say nothing; a key that was taken away leaves one behind."""
        if len(self._uses) < MAX_IDLE_KEYS:
            return
        now_s = self._now()
        for key_id, use in list(self._uses.items()):
            buckets = [bucket for bucket in (use.requests, use.tokens) if bucket is not None]
            if not use.running and all(bucket.full_s(now_s) == 0 for bucket in buckets):
                del self._uses[key_id]


def _bucket(per_minute: int | None, n_gateways: int, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute / n_gateways, now_s)


def _adjusted(
    bucket: Bucket | None, per_minute: int | None, n_gateways: int, now_s: float
) -> Bucket | None:
    if bucket is None or per_minute is None:
        return _bucket(per_minute, n_gateways, now_s)
    bucket.set_rate(per_minute / n_gateways, now_s)
    return bucket


def _limited(what: str, wait_s: float) -> GatewayError:
    retry_s = max(math.ceil(wait_s), 1)
    message = f"{what}; try again in {retry_s} s"
    return GatewayError(ErrorKind.RATE_LIMITED, message, retry_after_s=retry_s)
