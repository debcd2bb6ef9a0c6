"""Token ids to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

_CONTEXT_TOKENS = 6
"""Tokens of the prompt that a decoder needs before the first output token (leading spaces)."""
_UNFINISHED = "\ufffd"
_MAX_CHARACTER_TOKENS = 4
"""A character has at most four bytes, so no more tokens than that can be pieces of one."""


class IncrementalDecoder:
    """Turns a growing list of token ids into text that, once given out, never changes.

    Decoders look at neighbours (leading spaces, multi-byte characters), so a short window is decoded
    whole and what was not given out yet is returned. A window that ends inside a character is held back.

    Args:
        decode: token ids to text.
        prompt_token_ids: what stands before the first token to come.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._window = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        self._n_read = len(self._window)
        """Tokens of the window whose text has been given out."""
        self._shown = decode(self._window).rstrip(_UNFINISHED) if self._window else ""
        """Text of the window that has been given out."""

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; often, but not always, the token's own."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(_UNFINISHED):
            if len(self._window) - self._n_read < _MAX_CHARACTER_TOKENS:
                return ""
            # Bytes that are no character: only the last mark can still become one.
            return self._show(text[:-1])
        new = self._show(text)
        del self._window[: self._n_read]
        self._n_read = len(self._window)
        self._shown = self._decode(self._window)
        return new

    def flush(self) -> str:
        """The rest, unfinished characters included; nothing comes after it."""
        return self._show(self._decode(self._window)) if self._window else ""

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        if new:
            self._shown = text
        return new


class StopMatcher:
    """Finds the first of several stop strings in a text that comes in pieces (Aho-Corasick).

    The automaton's state is the longest end of the text that starts a stop string: exactly what has to be
    held back. A character costs one look-up, however many and long the stop strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._fallback = self._link()
        self._state = 0
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that may be given out, and the stop string that was found (nothing comes after it)."""
        if not text:
            return "", None
        state, following, fallback = self._state, self._next, self._fallback
        for position, char in enumerate(text):
            while state and char not in following[state]:
                state = fallback[state]
            state = following[state].get(char, 0)
            stop = self._match[state]
            if stop is not None:
                seen = self._held + text[: position + 1]
                self._held = ""
                return seen[: len(seen) - len(stop)], stop
        self._state = state
        seen = self._held + text
        n_sure = len(seen) - self._depth[state]
        self._held = seen[n_sure:]
        return seen[:n_sure], None

    def flush(self) -> str:
        """What was held back; nothing comes after it."""
        held, self._held = self._held, ""
        return held

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append(None)
            state = self._next[state][char]
        self._match[state] = stop

    def _link(self) -> list[int]:
        fallback = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self._next[state].items():
                back = fallback[state]
                while back and char not in self._next[back]:
                    back = fallback[back]
                fallback[child] = self._next[back].get(char, 0)
                if self._match[child] is None:
                    self._match[child] = self._match[fallback[child]]
                queue.append(child)
        return fallback
