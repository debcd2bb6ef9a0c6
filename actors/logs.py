"""What a process writes to its log: lines of text, or a JSON object a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from expertmesh.configs.observability import LoggingConfig

ROOT = "expertmesh"
"""The logger above all of ours; what others log is left alone."""


def set_up_logging(settings: LoggingConfig, **process: str) -> None:
    """Directs what this process logs to its standard error, which Ray keeps in a file of its session.

    Args:
        settings: the deployment's.
        process: what every JSON line says of the process.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(process) if settings.format == "json" else TextLines())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.setLevel(settings.level.upper())
    logger.propagate = False


def log_fields(logger: logging.Logger, message: str, fields: Mapping[str, Any]) -> None:
    """One line of level info with named values; `None` and empty texts are left out."""
    if logger.isEnabledFor(logging.INFO):
        told = {name: value for name, value in fields.items() if value is not None and value != ""}
        logger.info(message, extra={"fields": told})


class TextLines(logging.Formatter):
    """Time, level, message, and the fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line without a traceback."""
        fields = getattr(record, "fields", {})
        told = (f"{name}={_text(value)}" for name, value in fields.items())
        return " ".join([super().formatMessage(record), *told])


class JsonLines(logging.Formatter):
    """A JSON object a line: `time`, `level`, `logger`, `message`, what the process is, and the fields."""

    def __init__(self, process: Mapping[str, str]) -> None:
        super().__init__()
        self._process = dict(process)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return json.dumps(value, ensure_ascii=False, default=str) if not _is_plain(value) else str(value)


def _is_plain(value: object) -> bool:
    """Whether it can stand in a line as it is: no blanks, quotes or line ends."""
    if isinstance(value, str):
        return value.isprintable() and not set(value) & set(' "=')
    return isinstance(value, int)
