"""Decides about every call: who it is from, and whether they may."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from expertmesh.actors.gateway.access.keys import ApiKey, Keyring
from expertmesh.actors.gateway.access.level import Access
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError

BEARER = "bearer "
REQUEST_ID = "x-request-id"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a call is from."""

    access: Access
    key: ApiKey | None = None
    """None where no keys are configured, or none is needed."""
    request_id: str = ""
    """What they call the request (`x-request-id`); empty when they do not."""
    traceparent: str = ""
    """The span that it is part of (W3C Trace Context); empty when there is none."""

    @property
    def key_name(self) -> str:
        """For logs and metrics; empty without a key."""
        return self.key.name if self.key else ""


ANYBODY = Caller(Access.OPEN)
"""Callers of what is open."""
UNCHECKED = Caller(Access.ADMIN)
"""Callers where no keys are configured."""


def _now() -> datetime:
    return datetime.now(UTC)


class Gate:
    """Admits calls.

    Args:
        keyring: gives the keys that count now; None: no keys are configured, and everything is open.
        stale: whether these are not the ones that are meant to count, because the key file is broken.
        now: the time, in UTC.
        on_refusal: told why a call was not admitted.
    """

    def __init__(
        self,
        keyring: Callable[[], Keyring] | None = None,
        stale: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime] = _now,
        on_refusal: Callable[[GatewayError], None] = lambda error: None,
    ) -> None:
        self._keyring = keyring
        self._stale = stale
        self._now = now
        self._on_refusal = on_refusal

    @property
    def state(self) -> str:
        """`open` (no keys are configured), `current`, or `stale` (the file is broken, older keys go on)."""
        if self._keyring is None:
            return "open"
        return "stale" if self._stale() else "current"

    def admit(self, headers: Mapping[str, str], needed: Access | None) -> Caller:
        """Who calls.

        Args:
            headers: of the HTTP request, or the metadata of the RPC; names in lower case.
            needed: what was stated for the route or RPC; None, nothing, lets nobody in.

        Raises:
            GatewayError: UNAUTHENTICATED without a key that counts, FORBIDDEN when its role is too low.
        """
        try:
            caller = self._admit(headers, needed)
        except GatewayError as error:
            self._on_refusal(error)
            raise
        return replace(caller, request_id=named_id(headers), traceparent=headers.get("traceparent", ""))

    def _admit(self, headers: Mapping[str, str], needed: Access | None) -> Caller:
        if needed is None:
            raise GatewayError(ErrorKind.FORBIDDEN, "nobody has been allowed to call this")
        if needed is Access.OPEN:
            return ANYBODY
        if self._keyring is None:
            return UNCHECKED
        key = self._identify(presented_key(headers), self._keyring())
        if key.access < needed:
            message = f"this needs a key with the role {needed.name.lower()}, not {key.access.name.lower()}"
            raise GatewayError(ErrorKind.FORBIDDEN, message)
        return Caller(key.access, key)

    def _identify(self, presented: str, keyring: Keyring) -> ApiKey:
        if not presented:
            message = "an API key is needed: send it as `Authorization: Bearer KEY` (over gRPC as metadata)"
            raise GatewayError(ErrorKind.UNAUTHENTICATED, message)
        key = keyring.find(presented)
        if key is None:
            raise GatewayError(ErrorKind.UNAUTHENTICATED, "the API key is not known here")
        if key.expires is not None and key.expires <= self._now():
            raise GatewayError(ErrorKind.UNAUTHENTICATED, f"the API key has expired at {key.expires}")
        return key


def named_id(headers: Mapping[str, str]) -> str:
    """What the caller calls the request; empty when it does not, or in no way that can stand in a log."""
    name = headers.get(REQUEST_ID, "")
    return name if _REQUEST_ID.fullmatch(name) else ""


def presented_key(headers: Mapping[str, str]) -> str:
    """The key of `Authorization: Bearer KEY` or `x-api-key: KEY`; empty without."""
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(BEARER):
        return authorization[len(BEARER) :].strip()
    return headers.get("x-api-key", "").strip()
