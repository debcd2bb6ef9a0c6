"""Checkpoints for tests, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from draft_checkpoints import DraftKind
from hypothesis import settings
from tiny_checkpoints import Family, Kind

REPOSITORY = Path(__file__).resolve().parents[1]

# Tests assert behaviour, not time: an example may take as long as the machine lets it.
settings.register_profile("expertmesh", deadline=None)
settings.load_profile("expertmesh")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind | Family], Path]:
    """`tiny_checkpoint(kind)`: the folder of a tiny random fp32 checkpoint. Not to be written to."""
    from tiny_checkpoints import make_tiny_checkpoint

    made: dict[Kind | Family, Path] = {}

    def make(kind: Kind | Family) -> Path:
        if kind not in made:
            made[kind] = make_tiny_checkpoint(kind, tmp_path_factory.mktemp(f"tiny-{kind}"))
        return made[kind]

    return make


@pytest.fixture(scope="session")
def draft_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`draft_checkpoint(kind)`: like `tiny_checkpoint`, with a multi-token-prediction module.

    `agreeable`: one whose drafts are mostly accepted.
    """
    from draft_checkpoints import make_draft_checkpoint

    made: dict[tuple[DraftKind, bool], Path] = {}

    def make(kind: DraftKind, agreeable: bool = False) -> Path:
        if (kind, agreeable) not in made:
            folder = tmp_path_factory.mktemp(f"draft-{kind}")
            made[kind, agreeable] = make_draft_checkpoint(kind, folder, agreeable=agreeable)
        return made[kind, agreeable]

    return make


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The folder of the demo checkpoint."""
    return REPOSITORY / "configs" / "demo"


@dataclass(frozen=True)
class QuantisedPair:
    """A quantised checkpoint, and a plain one of the same values, made by hand."""

    stored: Path
    plain: Path


@pytest.fixture(scope="session")
def quantised_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], QuantisedPair]:
    """`quantised_checkpoint(form)`: tiny and random, in one of `quantised_checkpoints.CASES`."""
    from quantised_checkpoints import CASES, dequantise_by_hand, tool
    from tiny_checkpoints import make_tiny_checkpoint

    made: dict[str, QuantisedPair] = {}

    def make(form: str) -> QuantisedPair:
        if form not in made:
            kind, how, changes = CASES[form]
            folder = tmp_path_factory.mktemp(f"quantised-{form}")
            source = make_tiny_checkpoint(kind, folder / "source", **changes)
            stored = tool().quantise_checkpoint(how, source, folder / "stored")
            made[form] = QuantisedPair(stored, dequantise_by_hand(stored, folder / "plain"))
        return made[form]

    return make
