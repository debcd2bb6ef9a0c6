"""Safetensors files by their headers alone: which tensor lies where, checked against the file's size.

Format: eight bytes (little endian) give the header's length, then JSON {name: {dtype, shape,
data_offsets}}, then the data (https://github.com/huggingface/safetensors). No torch here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from expertmesh.models.config import read_json
from expertmesh.models.errors import CheckpointError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
    "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file."""

    name: str
    file: Path
    dtype: str
    """As safetensors spells it: F32, BF16, F16, ..."""
    shape: tuple[int, ...]
    offset_bytes: int
    """From the file's start."""
    n_bytes: int


def find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint directory: one file, shards with an index, or shards without.

    Raises:
        CheckpointError: no weights, pickled weights only, a truncated or malformed file, a shard that the
            index names and that is missing, or a tensor that stands in two files.
    """
    single, index = directory / _SINGLE_FILE, directory / _INDEX_FILE
    if single.is_file():
        return {tensor.name: tensor for tensor in read_header(single)}
    if index.is_file():
        return _indexed_tensors(index)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise _no_weights(directory)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                other = tensors[tensor.name].file.name
                raise CheckpointError(file, f"the tensor stands in {other} too", f"tensor {tensor.name!r}")
            tensors[tensor.name] = tensor
    return tensors


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file; only the header is read.

    Raises:
        CheckpointError: the file is missing, truncated or malformed; names the file and the tensor.
    """
    try:
        size_bytes = file.stat().st_size
        with file.open("rb") as stream:
            length_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if size_bytes < _LENGTH_BYTES or _LENGTH_BYTES + length_bytes > size_bytes:
                raise CheckpointError(
                    file, f"truncated or no safetensors file: {size_bytes} bytes do not hold its header"
                )
            if length_bytes > _MAX_HEADER_BYTES:
                raise CheckpointError(file, f"no safetensors file: a header of {length_bytes} bytes")
            text = stream.read(length_bytes)
    except OSError as error:
        raise CheckpointError(file, f"the file cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(file, f"the safetensors header is no valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(file, "the safetensors header is no JSON object")
    start_bytes = _LENGTH_BYTES + length_bytes
    return [
        _stored_tensor(file, name, entry, start_bytes, size_bytes)
        for name, entry in header.items()
        if name != "__metadata__"
    ]


def _stored_tensor(file: Path, name: str, entry: object, start_bytes: int, size_bytes: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if all(
            isinstance(n, int) and n >= 0 for n in shape
        ):
            pass
        case _:
            raise CheckpointError(file, "malformed entry in the safetensors header", f"tensor {name!r}")
    if begin < 0 or end < begin:
        raise CheckpointError(file, f"impossible data offsets {begin} to {end}", f"tensor {name!r}")
    if start_bytes + end > size_bytes:
        raise CheckpointError(
            file,
            f"the file is truncated: the tensor ends at byte {start_bytes + end}, the file at {size_bytes}",
            f"tensor {name!r}",
        )
    if dtype in _ITEM_BYTES and math.prod(shape) * _ITEM_BYTES[dtype] != end - begin:
        raise CheckpointError(
            file, f"{end - begin} bytes of data do not make {dtype} {shape}", f"tensor {name!r}"
        )
    return StoredTensor(name, file, dtype, tuple(shape), start_bytes + begin, end - begin)


def _indexed_tensors(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(
            index, "an object from tensor names to file names is needed", "key 'weight_map'"
        )
    shards: dict[str, dict[str, StoredTensor]] = {}
    for file_name in sorted(set(weight_map.values())):
        if Path(file_name).name != file_name:
            raise CheckpointError(
                index, f"{file_name!r} is not a file of this directory", "key 'weight_map'"
            )
        shard = index.parent / file_name
        if not shard.is_file():
            raise CheckpointError(shard, f"the shard is missing ({index.name} names it)")
        shards[file_name] = {tensor.name: tensor for tensor in read_header(shard)}
    tensors: dict[str, StoredTensor] = {}
    for name, file_name in weight_map.items():
        if name not in shards[file_name]:
            raise CheckpointError(
                index.parent / file_name,
                f"the tensor is missing ({index.name} names it)",
                f"tensor {name!r}",
            )
        tensors[name] = shards[file_name][name]
    return tensors


def _no_weights(directory: Path) -> CheckpointError:
    pickled = sorted(f.name for f in directory.iterdir() if f.suffix in _PICKLE_SUFFIXES)
    if pickled:
        return CheckpointError(
            directory / pickled[0],
            "pickled weights are refused, since loading them can run code; convert them to safetensors",
        )
    return CheckpointError(directory, f"no weights: neither {_SINGLE_FILE} nor {_INDEX_FILE} nor shards")
