"""Text comes out whole, and stop strings never do."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmesh.actors.gateway.detokenize import IncrementalDecoder, StopMatcher

TEXTS = ["plain words", "你好, 世界", "a🙂b", "é", "tab\tand\nline", "👩‍👩‍👧"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_make_the_text_and_none_is_cut(tokenizer, text):
    decoder = IncrementalDecoder(tokenizer.decode)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = [decoder.push(token_id) for token_id in token_ids]
    assert "".join(pieces) + decoder.flush() == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_comes_out_with_its_last_byte(tokenizer):
    decoder = IncrementalDecoder(tokenizer.decode)
    pieces = [decoder.push(token_id) for token_id in tokenizer.encode("🙂!", add_special_tokens=False)]
    assert pieces == ["", "", "", "🙂", "!"]


def test_an_unfinished_character_comes_out_at_the_end(tokenizer):
    decoder = IncrementalDecoder(tokenizer.decode)
    pieces = [
        decoder.push(token_id) for token_id in tokenizer.encode("ab🙂", add_special_tokens=False)[:-1]
    ]
    assert "".join(pieces) == "ab"
    assert decoder.flush() == "\ufffd"


def test_bytes_that_are_no_character_do_not_hold_back_what_follows(tokenizer):
    continuation_byte = tokenizer.encode("é", add_special_tokens=False)[1]
    decoder = IncrementalDecoder(tokenizer.decode)
    shown = "".join(decoder.push(continuation_byte) for _ in range(20))
    assert len(shown) >= 16
    assert shown + decoder.push(tokenizer.encode("x", False)[0]) == "\ufffd" * 20 + "x"


def test_a_character_that_the_prompt_began_is_finished(tokenizer):
    token_ids = tokenizer.encode("x🙂", add_special_tokens=False)
    decoder = IncrementalDecoder(tokenizer.decode, token_ids[:-1])
    assert decoder.push(token_ids[-1]) == "🙂"


def test_special_tokens_are_no_text(tokenizer):
    decoder = IncrementalDecoder(tokenizer.decode)
    token_ids = [*tokenizer.encode("hi"), 1, *tokenizer.encode("you", add_special_tokens=False)]
    assert "".join(decoder.push(token_id) for token_id in token_ids) == "hiyou"


def reference_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The stop string that is complete first; of several that end together the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_stop_strings_are_found_wherever_the_text_is_cut(text, stops, cuts):
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    matcher = StopMatcher(stops)
    shown, found = "", None
    for start, end in itertools.pairwise(borders):
        sure, found = matcher.push(text[start:end])
        shown += sure
        if found is not None:
            break
        held_back = text[:end][len(shown) :]
        assert any(stop.startswith(held_back) for stop in stops)
    else:
        shown += matcher.flush()
    assert (shown, found) == reference_stop(text, stops)
