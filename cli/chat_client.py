"""A chat's side of `POST /v1/chat/completions`: one streamed answer at a time, over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from expertmesh.cli.errors import EXIT_FAILED, EXIT_USAGE, CliError, UsageError

Message = Mapping[str, str]
"""`role` and `content`, as in OpenAI's API."""

USAGE_STATUSES = (400, 404, 413, 422)
"""The request is at fault, and would be at any other time."""
EVENT = b"data: "
END = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. The last one has no text, but the usage."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatClient:
    """Asks one deployment.

    Args:
        url: of its HTTP face, with the route prefix where it has one.
        key: the API key, needed where the deployment asks for one.
        timeout_s: the longest silence; a stream that goes on may take as long as it likes.
        params: further fields of each request.
    """

    url: str
    key: str = ""
    timeout_s: float = 600.0
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"--url: {self.url!r} is no address such as http://127.0.0.1:8000")

    def models(self) -> list[str]:
        """The names of the served models.

        Raises:
            CliError: the deployment does not answer, or refuses.
        """
        with self._request("GET", "/v1/models", None) as response:
            listed = json.loads(response.read())
        return [str(model["id"]) for model in listed["data"]]

    def answer(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """The answer to a conversation as it comes; closing the iterator cancels it.

        Raises:
            CliError: the call failed, or its stream ended without saying why.
        """
        body = {
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.params,
        }
        with self._request("POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
            for line in response:
                event = line.strip()
                if not event.startswith(EVENT):
                    continue
                if (data := event.removeprefix(EVENT)) == END:
                    return
                yield self._piece(json.loads(data))
        raise CliError(f"{self.url}: the stream ended before the answer did")

    def _piece(self, chunk: Mapping[str, Any]) -> Piece:
        if "error" in chunk:
            raise CliError(f"{self.url}: {chunk['error']['message']}")
        if usage := chunk.get("usage"):
            return Piece(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
        choice = chunk["choices"][0]
        delta = choice["delta"]
        return Piece(
            content=delta.get("content") or "",
            reasoning=delta.get("reasoning_content") or "",
            finish_reason=choice.get("finish_reason") or "",
        )

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(parts.netloc.rpartition("@")[2], timeout=self.timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise self._refusal(response)
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise CliError(f"{self.url}: {_reason(error, self.timeout_s)}") from error
        finally:
            connection.close()

    def _refusal(self, response: http.client.HTTPResponse) -> CliError:
        text = response.read().decode(errors="replace")
        try:
            message = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = text.strip().partition("\n")[0] or response.reason
        exit_code = EXIT_USAGE if response.status in USAGE_STATUSES else EXIT_FAILED
        return CliError(f"{self.url}: {response.status}: {message}", exit_code)


def _reason(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing was heard for {timeout_s:g} s"
    return str(error) or type(error).__name__
