"""A line in the gateway's log for each request that has ended."""

from __future__ import annotations

import logging

from expertmesh.actors.gateway.telemetry import RequestRecord
from expertmesh.actors.logs import log_fields

logger = logging.getLogger(__name__)


def log_request(record: RequestRecord) -> None:
    """Says what became of a request; of its contents only what the record was told to keep."""
    log_fields(
        logger,
        "request",
        {
            "request_id": record.request_id,
            "outcome": record.outcome,
            "reason": record.reason,
            # What is wrong with a request that was refused may quote it.
            "error": record.error if record.outcome == "failed" else "",
            "face": record.face,
            "key": record.caller.key_name,
            "prompt_tokens": record.n_prompt_tokens,
            "output_tokens": record.n_output_tokens,
            "first_token_s": record.first_token_s,
            "seconds": record.seconds,
            "weights": record.weights or None,
            "attempts": record.n_moves + 1 if record.placed else 0,
            "trace_id": record.trace_id,
            "prompts": record.prompts,
        },
    )
