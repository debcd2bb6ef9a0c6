"""The key file: what may stand in it, and that running gateways follow it."""

from __future__ import annotations

import asyncio
import logging
import os

import pytest
from api_keys import entry, key_text, write_keys

from expertmesh.actors.gateway.access.key_file import (
    Entry,
    KeyFileError,
    parse_entries,
    read_keyring,
    write_entries,
)
from expertmesh.actors.gateway.access.key_watch import KeyWatch
from expertmesh.actors.gateway.access.keys import KeyLimits, Keyring, new_key
from expertmesh.actors.gateway.access.level import Access

pytestmark = pytest.mark.anyio

WAIT_S = 10.0


def names(keyring: Keyring) -> set[str]:
    return {key.name for key in keyring.keys}


def test_a_key_is_found_by_its_hash(tmp_path):
    keys = [new_key() for _ in range(3)]
    limits = {"requests_per_minute": 5, "concurrent_requests": 2}
    path = write_keys(
        tmp_path / "keys",
        entry(keys[0], name="a"),
        entry(keys[1], "admin", "b", expires="2030-01-01T00:00:00Z", limits=limits),
        entry(keys[2], name="c"),
    )
    keyring = read_keyring(path)
    found = keyring.find(keys[1])
    assert (found.name, found.access, found.expires.year) == ("b", Access.ADMIN, 2030)
    assert found.limits == KeyLimits(requests_per_minute=5, concurrent_requests=2)
    assert keyring.find(keys[2]).limits == KeyLimits()
    assert keyring.find(keys[0] + "x") is None
    assert keyring.find("\udcff") is None
    assert not any(key in path.read_text() for key in keys)


GOOD = entry("em-1", name="one")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("keys: [", "is not YAML"),
        ("em-plain-key-of-somebody", "keys"),
        ("", "keys"),
        (key_text(GOOD | {"role": "root"}), "keys.0.role"),
        (key_text(GOOD | {"hash": "sha256:123"}), "keys.0.hash"),
        (key_text(GOOD | {"limit": {}}), "keys.0.limit"),
        (key_text(GOOD | {"limits": {"requests_per_minute": 0}}), "keys.0.limits.requests_per_minute"),
        (key_text(GOOD, entry("em-1", name="two")), "two keys have the hash of 'id-one'"),
        (key_text(GOOD, entry("em-2", name="one")), "two keys have the id of 'id-one'"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_given_away(text, what):
    with pytest.raises(KeyFileError, match="a/file") as wrong:
        parse_entries(text, "a/file")
    assert what in str(wrong.value)
    assert "em-plain" not in str(wrong.value)
    assert GOOD["hash"].removeprefix("sha256:") not in str(wrong.value)


def test_what_is_written_is_read_again_and_is_the_owners_alone(tmp_path):
    path = tmp_path / "keys"
    entries = [Entry(**entry(new_key(), name=name, expires="2030-01-01T00:00:00Z")) for name in "ab"]
    write_entries(path, entries)
    assert path.stat().st_mode & 0o777 == 0o600
    assert parse_entries(path.read_text(), "it") == entries
    path.chmod(0o640)
    write_entries(path, entries[:1])
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(read_keyring(path)) == {"a"}
    assert os.listdir(tmp_path) == ["keys"]


def test_a_gateway_does_not_start_without_its_keys(tmp_path):
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyWatch(tmp_path / "none")


def test_a_broken_file_changes_nothing_and_is_told_once(tmp_path, caplog):
    path = write_keys(tmp_path / "keys", GOOD)
    watch = KeyWatch(path)
    with caplog.at_level(logging.ERROR):
        path.write_text("keys: 7")
        assert not watch.look()
        assert not watch.look()
    assert names(watch.keyring()) == {"one"}
    assert watch.error
    assert len(caplog.records) == 1
    path.unlink()
    assert not watch.look()
    assert "cannot be read" in watch.error
    write_keys(path, GOOD)  # the same as before it broke
    watch.look()
    assert watch.error == ""


def test_a_change_within_a_tick_of_the_clock_counts(tmp_path):
    path = write_keys(tmp_path / "keys", GOOD)
    watch = KeyWatch(path)
    before = path.stat()
    path.write_text(path.read_text().replace("one", "two"))  # in place: the same inode and length
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watch.look()
    assert names(watch.keyring()) == {"two"}
    assert not watch.look()


async def test_a_secret_that_kubernetes_swaps_is_followed(tmp_path):
    def publish(version: str, *entries) -> None:
        """As the kubelet does: a new folder, and a link that is renamed into the place of the old one."""
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        write_keys(folder / "keys", *entries)
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    publish("1", GOOD)
    (tmp_path / "keys").symlink_to("..data/keys")
    watch = KeyWatch(tmp_path / "keys")
    watch.start(0.01)
    try:
        publish("2", GOOD, entry("em-2", name="two"))
        async with asyncio.timeout(WAIT_S):
            while names(watch.keyring()) != {"one", "two"}:
                await asyncio.sleep(0.01)
    finally:
        await watch.close()
