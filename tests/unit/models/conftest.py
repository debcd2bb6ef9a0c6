"""Tiny checkpoints written by hand: no transformers, only the safetensors format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from expertmesh.models.config import ConfigFile
from expertmesh.models.names import expected_tensors
from expertmesh.models.registry import find_architecture

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "torch_dtype": "float32",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 5,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 1,
}


class TinyCheckpoint:
    """A checkpoint whose config and tensors a test may spoil before it is written."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.config = TINY_CONFIG | changes
        generator = torch.Generator().manual_seed(0)
        spec_config = ConfigFile(folder / "config.json", self.config)
        architecture = find_architecture(spec_config)
        spec = architecture.parse(spec_config)
        self.tensors: dict[str, Tensor] = {
            ref.name: torch.randn(ref.shape, generator=generator)
            for ref in expected_tensors(architecture.names(spec), spec)
        }

    def write(self, n_shards: int = 1, *, index: bool = True) -> Path:
        """Writes config and weights, as one file or as shards with or without an index."""
        (self.folder / "config.json").write_text(json.dumps(self.config))
        if n_shards == 1:
            save_file(self.tensors, self.folder / "model.safetensors")
            return self.folder
        names = sorted(self.tensors)
        weight_map: dict[str, str] = {}
        for shard in range(n_shards):
            file_name = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
            part = names[shard::n_shards]
            save_file({name: self.tensors[name] for name in part}, self.folder / file_name)
            weight_map |= dict.fromkeys(part, file_name)
        if index:
            text = json.dumps({"metadata": {}, "weight_map": weight_map})
            (self.folder / "model.safetensors.index.json").write_text(text)
        return self.folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products: threads that wait for each other cost more than they bring."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCheckpoint:
    """A tiny DeepSeek-V3 checkpoint, not yet written: 3 layers (the first dense), 5 experts."""
    return TinyCheckpoint(tmp_path)


@pytest.fixture(scope="session")
def new_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyCheckpoint]:
    """`new_checkpoint(key=value, ...)`: another such checkpoint with a changed config."""
    return lambda **changes: TinyCheckpoint(tmp_path_factory.mktemp("checkpoint"), **changes)


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[dict[str, Any]], ConfigFile]:
    """A config as if it had been read from a file."""
    return lambda values: ConfigFile(tmp_path / "config.json", values)
