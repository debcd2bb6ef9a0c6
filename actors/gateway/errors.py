"""The one error type of the gateway; each face renders it in its own form."""

from __future__ import annotations

from enum import Enum


class ErrorKind(Enum):
    """What went wrong, as HTTP and gRPC tell it apart."""

    INVALID = "invalid"
    """The request can never be served as it stands; `field` names the culprit."""
    MODEL_NOT_FOUND = "model_not_found"
    TOO_LARGE = "too_large"
    """The body is larger than the limit."""
    QUEUE_FULL = "queue_full"
    UNAVAILABLE = "unavailable"
    """No generation is live, or the gateway is draining."""
    REFUSED = "refused"
    """The deployment cannot be changed in this way as things stand."""
    DEADLINE = "deadline"
    INTERNAL = "internal"
    UNAUTHENTICATED = "invalid_api_key"
    """No API key, or one that does not count."""
    FORBIDDEN = "insufficient_permissions"
    """The key's role does not suffice."""
    RATE_LIMITED = "rate_limit_exceeded"
    """The key has used up what it may."""
    DOES_NOT_FIT = "context_length_exceeded"
    """Prompt and answer have become longer than what a router can hold."""


class GatewayError(Exception):
    """A request ends with this.

    Args:
        kind: the class of the error.
        message: what is wrong and what would be right, for the client's eyes.
        field: the request's field that is at fault, as the client wrote it.
        retry_after_s: when the same request may be served, where that is known.
    """

    def __init__(
        self, kind: ErrorKind, message: str, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.kind = kind
        self.message = message
        self.field = field


def invalid(field: str, message: str) -> GatewayError:
    """The error for a field that is out of bounds; the message starts with the field's name."""
    return GatewayError(ErrorKind.INVALID, f"{field}: {message}", field)
