"""A Hugging Face checkpoint directory: opened by config and headers, checked whole, read tensor by tensor.

No torch here, so that a checkpoint can be checked before anything is started.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from expertmesh.models.architectures.base import Architecture
from expertmesh.models.config import ConfigFile
from expertmesh.models.errors import CheckpointError
from expertmesh.models.names import TensorNames, expected_tensors
from expertmesh.models.quantisation import (
    Quantisation,
    QuantisedTensor,
    find_quantised,
    read_quantisation,
)
from expertmesh.models.registry import ARCHITECTURES, find_architecture
from expertmesh.models.shards import StoredTensor, find_tensors
from expertmesh.models.spec import ModelSpec
from expertmesh.models.tensors import TensorRef

_FLOAT_DTYPES: dict[str, Literal["fp32", "bf16"]] = {"F32": "fp32", "BF16": "bf16", "F16": "fp32"}
"""What weights are computed in by default. Half precision becomes fp32, which holds it exactly."""

_INTEGER_DTYPES = ("I64", "I32")

ReadFile = Callable[[Path, int, memoryview], None]
"""Fills a buffer from a file's byte on. Raises OSError, or EOFError when the file ends early."""


def read_file(file: Path, offset_bytes: int, buffer: memoryview) -> None:
    """`ReadFile` by plain reads, not a memory map: mapped pages would count as this process's memory."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(offset_bytes)
        done_bytes = 0
        while done_bytes < buffer.nbytes:
            n_bytes = stream.readinto(buffer[done_bytes:])
            if not n_bytes:
                raise EOFError(f"{file} ends early")
            done_bytes += n_bytes


class Checkpoint:
    """An opened checkpoint whose names and shapes are known to fit its config."""

    def __init__(
        self,
        directory: Path,
        spec: ModelSpec,
        names: TensorNames,
        tensors: dict[str, StoredTensor],
        quantised: Mapping[str, QuantisedTensor],
    ) -> None:
        self.directory = directory
        self.spec = spec
        self.names = names
        self.bytes_read = 0
        """Of tensor data, by this object, so far."""
        self._tensors = tensors
        self._quantised = quantised

    @classmethod
    def open(
        cls,
        directory: Path,
        architectures: Mapping[str, Architecture] = ARCHITECTURES,
        *,
        drafts: bool = False,
    ) -> Checkpoint:
        """Reads the config and the files' headers and checks every name, shape and dtype.

        Args:
            architectures: those that may be met, by the name in the config.
            drafts: whether the multi-token-prediction module is wanted, too.

        Raises:
            CheckpointError: the first thing that is wrong; names the file and the tensor or key.
        """
        if not directory.is_dir():
            raise CheckpointError(directory, "no such checkpoint directory")
        config = ConfigFile.read(directory / "config.json")
        architecture = find_architecture(config, architectures)
        quantisation = read_quantisation(config)
        spec = _parsed(config, architecture, drafts)
        names = architecture.names(spec)
        tensors = {names.canonical(name): tensor for name, tensor in find_tensors(directory).items()}
        quantised = _check_tensors(directory, spec, names, tensors, quantisation)
        spec = dataclasses.replace(
            spec,
            dtype=_FLOAT_DTYPES[tensors[names.embedding().name].dtype],
            eos_token_ids=_eos_token_ids(directory, spec),
        )
        return cls(directory, spec, names, tensors, quantised)

    def stored(self, ref: TensorRef) -> StoredTensor:
        """Where and how a tensor is stored, or the one of which `ref` is a part."""
        return self._tensors[ref.name]

    def quantised(self, ref: TensorRef) -> QuantisedTensor | None:
        """How a tensor is quantised, None when it is not."""
        return self._quantised.get(ref.name)

    def stored_bytes(self, ref: TensorRef) -> int:
        """What reading a tensor, or its part, reads; scales counted in."""
        quantised = self._quantised.get(ref.name)
        tensors = [self._tensors[ref.name]] if quantised is None else [quantised.values, quantised.scales]
        n_bytes = sum(tensor.n_bytes for tensor in tensors)
        return n_bytes if ref.part is None else n_bytes // ref.part[1]

    def read_bytes(
        self, ref: TensorRef, buffer: memoryview, skip_bytes: int = 0, read: ReadFile = read_file
    ) -> None:
        """Fills a buffer with the data as stored of a tensor that is not quantised, from `skip_bytes` on.

        Raises:
            CheckpointError: the file cannot be read, or ends too early.
        """
        self.read_stored(self._tensors[ref.name], ref.part, buffer, skip_bytes, read)

    def read_stored(
        self,
        tensor: StoredTensor,
        part: tuple[int, int] | None,
        buffer: memoryview,
        skip_bytes: int = 0,
        read: ReadFile = read_file,
    ) -> None:
        """Fills a buffer with a stored tensor's data, or with that of its part (index, count).

        Raises:
            CheckpointError: the file cannot be read, or ends too early.
        """
        n_bytes = tensor.n_bytes if part is None else tensor.n_bytes // part[1]
        if skip_bytes + buffer.nbytes > n_bytes:
            asked_bytes = skip_bytes + buffer.nbytes
            raise ValueError(f"{tensor.name} has {n_bytes} bytes, {asked_bytes} are asked for")
        if part is not None:
            skip_bytes += part[0] * n_bytes
        try:
            read(tensor.file, tensor.offset_bytes + skip_bytes, buffer)
        except EOFError:
            raise CheckpointError(tensor.file, "the file ends early", f"tensor {tensor.name!r}") from None
        except OSError as error:
            problem = f"the file cannot be read: {error.strerror}"
            raise CheckpointError(tensor.file, problem, f"tensor {tensor.name!r}") from None
        self.bytes_read += buffer.nbytes


def read_spec(directory: Path, *, drafts: bool = False) -> ModelSpec:
    """What config.json alone says, weights unseen; with the multi-token-prediction module for `drafts`.

    Raises:
        CheckpointError: the config is missing or not supported.
    """
    config = ConfigFile.read(directory / "config.json")
    return _parsed(config, find_architecture(config), drafts)


def check_checkpoint(directory: Path, *, drafts: bool = False) -> ModelSpec:
    """What the checkpoint holds, once every tensor that serving needs is there in its right shape.

    Reads the config and the headers of the weight files, no weights.

    Raises:
        CheckpointError: the first thing that is wrong; names the file and the tensor or key.
    """
    return Checkpoint.open(directory, drafts=drafts).spec


def _parsed(config: ConfigFile, architecture: Architecture, drafts: bool) -> ModelSpec:
    spec = architecture.parse(config)
    if not drafts:
        return spec
    drafter = architecture.drafter(config, spec)
    if drafter is None:
        raise config.error(
            "num_nextn_predict_layers",
            f"{spec.architecture} with this config.json has no multi-token-prediction module to draft "
            "tokens with (speculative.method: mtp); set speculative.method: off",
        )
    return dataclasses.replace(spec, drafter=drafter)


def _check_tensors(
    directory: Path,
    spec: ModelSpec,
    names: TensorNames,
    tensors: dict[str, StoredTensor],
    quantisation: Quantisation | None,
) -> dict[str, QuantisedTensor]:
    """Those that are quantised, by the names that they would have if they were not."""
    expected: set[str] = set()
    found: dict[str, QuantisedTensor] = {}
    for ref in expected_tensors(names, spec):
        if ref.name in found:  # Another part of it.
            continue
        quantised = None if quantisation is None else find_quantised(ref, tensors, quantisation)
        if quantised is not None:
            found[ref.name] = quantised
            expected |= {names.canonical(t.name) for t in (quantised.values, quantised.scales)}
            continue
        expected.add(ref.name)
        _check_plain(directory, ref, tensors.get(ref.name), quantisation)
    for name, tensor in tensors.items():
        if name not in expected and not names.is_ignored(name):
            problem = f"{spec.architecture} with this config.json has no such tensor"
            raise CheckpointError(tensor.file, problem, f"tensor {name!r}")
    return found


def _check_plain(
    directory: Path, ref: TensorRef, tensor: StoredTensor | None, quantisation: Quantisation | None
) -> None:
    if tensor is None:
        raise CheckpointError(directory, "the tensor is missing from the weights", f"tensor {ref.name!r}")
    supported = _INTEGER_DTYPES if ref.integer else tuple(_FLOAT_DTYPES)
    if tensor.dtype not in supported:
        why = "no quantization_config in config.json" if quantisation is None else "not quantised"
        problem = f"stored as {tensor.dtype}; supported: {', '.join(supported)} ({why})"
        raise CheckpointError(tensor.file, problem, f"tensor {ref.name!r}")
    if tensor.shape != ref.stored_shape:
        problem = f"shape {list(tensor.shape)}, but config.json asks for {list(ref.stored_shape)}"
        raise CheckpointError(tensor.file, problem, f"tensor {ref.name!r}")


def _eos_token_ids(directory: Path, spec: ModelSpec) -> tuple[int, ...]:
    """The config's, then those that generation_config.json adds (chat models end turns with another)."""
    file = directory / "generation_config.json"
    more = ConfigFile.read(file).integers("eos_token_id") if file.is_file() else ()
    return tuple(dict.fromkeys((*spec.eos_token_ids, *more)))
