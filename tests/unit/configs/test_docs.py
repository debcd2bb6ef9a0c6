"""docs/configuration.md says what the schema says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from expertmesh.configs.load import valid_keys

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_page_is_current_and_names_every_setting():
    spec = importlib.util.spec_from_file_location(
        "gen_config_docs", REPOSITORY / "tools" / "gen_config_docs.py"
    )
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert page == generator.render(), "run `make docs`"
    sections = {key.rpartition(".")[0] for key in valid_keys()}
    assert [key for key in valid_keys() if key not in sections and f"| `{key}` |" not in page] == []
    assert [line for line in page.splitlines() if line.endswith("|  |")] == [], (
        "every setting has a meaning"
    )
