"""Tokenizers of checkpoints: the one that is served, BOS where it belongs, and the bytes of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from expertmesh.actors.gateway.tokenizer import TextTokenizer

DEMO = Path(__file__).parents[4] / "configs" / "demo"


def test_the_demo_tokenizer_goes_there_and_back():
    tokenizer = TextTokenizer.load(DEMO)
    text = "SELECT * FROM t WHERE name = 'Łódź';"
    token_ids = tokenizer.encode(text)
    assert token_ids[0] == 0
    assert tokenizer.decode(token_ids) == text
    assert b"".join(tokenizer.piece(token_id)[1] for token_id in token_ids[1:]).decode() == text
    assert tokenizer.encode(text, add_special_tokens=False) == token_ids[1:]
    assert tokenizer.piece(0) == ("<|bos|>", b"<|bos|>")
    assert tokenizer.piece(10**9 % 2**31) == ("", b"")


def test_a_checkpoint_may_have_none(tmp_path):
    assert TextTokenizer.load(tmp_path) is None


@pytest.mark.parametrize("bos_token", ["<s>", {"content": "<s>"}])
@pytest.mark.parametrize("adds", [True, False])
def test_bos_comes_where_the_config_asks_for_it(tmp_path, bos_token, adds):
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"add_bos_token": adds, "bos_token": bos_token}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.encode("a b a") == ((0, 1, 2, 1) if adds else (1, 2, 1))
    assert loaded.encode("a b", add_special_tokens=False) == (1, 2)


def test_byte_fallback_tokens_have_their_bytes():
    tokenizer = Tokenizer(models.BPE({"<0xC3>": 0, "<0xA9>": 1, "\u2581a": 2}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    text = TextTokenizer(tokenizer)
    assert text.piece(0) == ("\ufffd", b"\xc3")
    assert text.piece(2) == (" a", b" a")
    assert text.decode([0, 1]) == "é"
