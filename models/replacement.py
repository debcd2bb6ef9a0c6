"""Whether one checkpoint can take the place of another while requests run. No torch here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.errors import CheckpointError
from expertmesh.models.spec import ModelSpec

TOKENIZER_FILE = "tokenizer.json"


def open_replacement(directory: Path, served: Path, spec: ModelSpec) -> Checkpoint:
    """Opens the checkpoint in `directory` when it is of the same architecture as the one that is served.

    Caches, exchanges and open streams stay, so that nothing but the values of the weights may differ.

    Args:
        served: the directory of the served one.
        spec: its architecture.

    Raises:
        CheckpointError: it cannot be served, or not in this one's place; names the first difference.
    """
    checkpoint = Checkpoint.open(directory, drafts=spec.drafter is not None)
    found = checkpoint.spec
    if found != spec:
        fields = [field.name for field in dataclasses.fields(spec)]
        names = [name for name in fields if getattr(found, name) != getattr(spec, name)]
        raise CheckpointError(
            directory / "config.json",
            f"differs from the served model in {', '.join(names)}: only weights can be replaced while "
            "requests run; deploy another architecture anew",
        )
    tokenizers = [folder / TOKENIZER_FILE for folder in (directory, served)]
    contents = [file.read_bytes() if file.is_file() else None for file in tokenizers]
    if contents[0] != contents[1]:
        raise CheckpointError(
            tokenizers[0], "differs from the served model's tokenizer; deploy the model anew"
        )
    return checkpoint
