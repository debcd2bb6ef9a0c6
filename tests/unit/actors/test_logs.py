"""Lines of the log, as people and as programs read them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest

from expertmesh.actors.gateway.access.gate import Caller
from expertmesh.actors.gateway.access.level import Access
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError, invalid
from expertmesh.actors.gateway.request_log import log_request
from expertmesh.actors.gateway.requests import RawParams, RawRequest
from expertmesh.actors.gateway.telemetry import GatewayTelemetry
from expertmesh.actors.logs import ROOT, set_up_logging
from expertmesh.configs.observability import LoggingConfig

SECRET = "what nobody is to read"


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Gives what went to standard error; afterwards the loggers are as they were."""
    logger = logging.getLogger(ROOT)
    before = (logger.handlers, logger.level, logger.propagate)
    yield lambda: capsys.readouterr().err
    logger.handlers, logger.level, logger.propagate = before


def refuse(telemetry: GatewayTelemetry, error: GatewayError) -> None:
    record = telemetry.begin("http", Caller(Access.USER, request_id="r-1"))
    record.named(RawRequest(prompts=(SECRET,), params=RawParams()))
    record.end(error)


def test_json_lines_have_the_process_and_the_fields(written):
    set_up_logging(LoggingConfig(format="json"), application="a", process="gateway", replica="x1")
    logging.getLogger("expertmesh.some.module").warning("a %s\nof two lines", "message")
    refuse(GatewayTelemetry(log_request), GatewayError(ErrorKind.QUEUE_FULL, "the queue is full"))
    first, second = map(json.loads, written().splitlines())
    assert (first["level"], first["message"]) == ("warning", "a message\nof two lines")
    assert (first["application"], first["process"], first["replica"]) == ("a", "gateway", "x1")
    assert (second["message"], second["outcome"], second["reason"]) == ("request", "refused", "queue_full")
    assert (second["request_id"], second["attempts"]) == ("r-1", 0)


def test_text_lines_hold_one_request_each_whatever_it_says(written):
    set_up_logging(LoggingConfig())
    telemetry = GatewayTelemetry(log_request)
    record = telemetry.begin("http", Caller(Access.USER, request_id="r-2"))
    record.end(RuntimeError('with "quotes"\nand lines'))
    [line] = written().splitlines()
    assert "INFO request request_id=r-2 outcome=failed reason=internal" in line
    assert r'error="RuntimeError: with \"quotes\"\nand lines"' in line


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("prompts", [False, True])
def test_prompts_are_written_only_when_asked_for(written, format, prompts):
    settings = LoggingConfig(format=format, prompts=prompts)
    set_up_logging(settings)
    refuse(GatewayTelemetry(log_request, keeps_prompts=prompts), invalid("prompt", f"{SECRET} is too long"))
    assert (SECRET in written()) == prompts


def test_below_the_level_nothing_is_written(written):
    set_up_logging(LoggingConfig(level="warning"))
    refuse(GatewayTelemetry(log_request), invalid("prompt", "is too long"))
    assert written() == ""


def test_exceptions_stand_in_the_line(written):
    set_up_logging(LoggingConfig(format="json"))
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("expertmesh").exception("it failed")
    [line] = map(json.loads, written().splitlines())
    assert "ValueError: broken" in line["exception"]
