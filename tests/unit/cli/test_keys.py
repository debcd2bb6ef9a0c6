"""`expertmesh keys` and `--api-key-file`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from expertmesh.actors.gateway.access.key_file import read_keyring
from expertmesh.cli.api_key import read_key
from expertmesh.cli.errors import EXIT_USAGE, CliError, UsageError
from expertmesh.cli.main import app
from expertmesh.configs.environment import API_KEY_VARIABLE


def run(*arguments: object):
    return CliRunner().invoke(app, ["keys", *map(str, arguments)])


def test_a_key_is_made_listed_and_revoked(tmp_path):
    path = tmp_path / "keys"
    made = run("create", "--file", path, "--name", "jobs", "--role", "admin", "--requests-per-minute", 7)
    assert made.exit_code == 0
    key = made.stdout.strip()
    found = read_keyring(path).find(key)
    assert (found.name, found.access.name, found.limits.requests_per_minute) == ("jobs", "ADMIN", 7)
    other = json.loads(run("create", "--file", path, "--name", "other", "--json").stdout)
    listed = json.loads(run("list", "--file", path, "--json").stdout)
    assert [row["name"] for row in listed["keys"]] == ["jobs", "other"]
    assert "hash" not in listed["keys"][0]
    assert key not in run("list", "--file", path).stdout
    assert run("revoke", "jobs", "--file", path).exit_code == 0
    keyring = read_keyring(path)
    assert keyring.find(key) is None
    assert keyring.find(other["key"]).id == other["id"]


def test_what_cannot_be_done_is_told(tmp_path):
    path = tmp_path / "keys"
    run("create", "--file", path, "--name", "jobs")
    for arguments in (
        ("create", "--file", path, "--name", "jobs"),
        ("create", "--file", path, "--name", ""),
        ("revoke", "nobody", "--file", path),
    ):
        failed = run(*arguments)
        assert isinstance(failed.exception, UsageError)
        assert failed.exception.exit_code == EXIT_USAGE
    assert isinstance(run("list", "--file", tmp_path / "none").exception, CliError)
    path.write_text("not a key file")
    broken = run("create", "--file", path, "--name", "more")
    assert isinstance(broken.exception, CliError)
    assert path.read_text() == "not a key file"


def test_the_key_comes_from_the_file_else_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert read_key(None) == ""
    monkeypatch.setenv(API_KEY_VARIABLE, " em-env ")
    assert read_key(None) == "em-env"
    (tmp_path / "key").write_text("em-file\n")
    assert read_key(tmp_path / "key") == "em-file"
    for text in ("", "two keys", "em-\u00e9"):
        (tmp_path / "key").write_text(text)
        with pytest.raises(UsageError, match="--api-key-file"):
            read_key(tmp_path / "key")
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(tmp_path / "none")
