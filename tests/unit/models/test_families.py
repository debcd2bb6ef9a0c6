"""What the published configs of the other families mean: parameter counts, cache and expert sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from published_configs import (
    DEEPSEEK_V4_FLASH,
    DEEPSEEK_V4_PRO,
    DEEPSEEK_V32,
    GLM_45,
    GPT_OSS_120B,
    LLAMA_405B,
    MIXTRAL_8X7B,
    QWEN3_235B,
)

from expertmesh.models.attention_specs import GqaSpec, IndexerSpec, SharedKvSpec
from expertmesh.models.config import ConfigFile
from expertmesh.models.errors import CheckpointError
from expertmesh.models.experts import expert_bytes
from expertmesh.models.names import expected_tensors
from expertmesh.models.registry import find_architecture
from expertmesh.models.spec import GateSpec, Llama3RopeSpec, ModelSpec, MoeSpec, RopeSpec, YarnSpec

MakeConfig = Callable[[dict[str, Any]], ConfigFile]
PUBLISHED = {
    "mixtral": MIXTRAL_8X7B,
    "llama": LLAMA_405B,
    "qwen3-moe": QWEN3_235B,
    "glm4-moe": GLM_45,
    "gpt-oss": GPT_OSS_120B,
    "v3.2": DEEPSEEK_V32,
    "v4-flash": DEEPSEEK_V4_FLASH,
    "v4-pro": DEEPSEEK_V4_PRO,
}


def parse(config: ConfigFile) -> ModelSpec:
    return find_architecture(config).parse(config)


def n_parameters(config: ConfigFile) -> int:
    spec = parse(config)
    names = find_architecture(config).names(spec)
    return sum(math.prod(ref.shape) for ref in expected_tensors(names, spec))


@pytest.mark.parametrize(
    ("name", "billions", "token_bytes", "expert_megabytes"),
    [
        ("mixtral", 46.7, 131_072, 352.3),
        ("llama", 405.9, 516_096, None),
        ("qwen3-moe", 235.1, 192_512, 37.75),
        ("glm4-moe", 352.8, 376_832, 47.19),
        ("gpt-oss", 116.8, 73_728 / 2, 49.79),
        ("v3.2", 671.9, 85_888, 88.08),
        ("v4-flash", 284.3, 6_880, 50.33),
        ("v4-pro", 1573, 9_848, 132.1),
    ],
)
def test_sizes(
    config_file: MakeConfig, name: str, billions: float, token_bytes: float, expert_megabytes: float | None
) -> None:
    config = config_file(PUBLISHED[name])
    spec = parse(config)
    assert n_parameters(config) / 1e9 == pytest.approx(billions, rel=2e-3)
    assert spec.cache.token_bytes(2) == token_bytes
    if expert_megabytes is None:
        assert not spec.moe_layers
    else:
        n_bytes = expert_bytes(spec, spec.moe_layers[0], torch.bfloat16)
        assert n_bytes / 1e6 == pytest.approx(expert_megabytes, rel=1e-3)


def test_half_of_gpt_oss_keeps_a_window(config_file: MakeConfig) -> None:
    layout = parse(config_file(GPT_OSS_120B)).cache
    assert layout.windows == (128,)
    assert layout.token_bytes(2) == layout.window_token_bytes(128, 2) == 36_864
    assert layout.sequence_bytes(2) == 128 * 36_864


def test_gates(config_file: MakeConfig) -> None:
    gates = {}
    for name, values in PUBLISHED.items():
        for layer in parse(config_file(values)).moe_layers:
            assert isinstance(layer.ffn, MoeSpec)
            gates[name] = layer.ffn.gate
    assert gates == {
        "mixtral": GateSpec("softmax", "greedy", 8, 2, renormalise=True),
        "qwen3-moe": GateSpec("softmax", "greedy", 128, 8, renormalise=True),
        "glm4-moe": GateSpec("sigmoid", "greedy", 160, 8, 1, 1, True, 2.5, True),
        "gpt-oss": GateSpec("softmax", "greedy", 128, 4, renormalise=True, bias=True),
        "v3.2": GateSpec("sigmoid", "group_top2", 256, 8, 8, 4, True, 2.5, True),
        "v4-flash": GateSpec("sqrt_softplus", "greedy", 256, 6, 1, 1, True, 1.5, True),
        "v4-pro": GateSpec("sqrt_softplus", "greedy", 384, 6, 1, 1, True, 2.5, True),
    }


def test_half_of_a_glm_head_turns(config_file: MakeConfig) -> None:
    attention = parse(config_file(GLM_45)).layers[0].attention
    assert isinstance(attention, GqaSpec)
    assert (attention.head_dim, attention.rope.dim, attention.rope.interleaved) == (128, 64, False)


def test_llama_scaling(config_file: MakeConfig) -> None:
    attention = parse(config_file(LLAMA_405B)).layers[0].attention
    assert isinstance(attention, GqaSpec)
    assert attention.rope.scaling == Llama3RopeSpec(8.0, 8192, 1.0, 4.0)


def test_head_counts_that_do_not_fit(config_file: MakeConfig) -> None:
    with pytest.raises(CheckpointError, match="num_key_value_heads"):
        parse(config_file(MIXTRAL_8X7B | {"num_key_value_heads": 5}))


def test_layer_types_that_do_not_fit(config_file: MakeConfig) -> None:
    with pytest.raises(CheckpointError, match="layer_types"):
        parse(config_file(GPT_OSS_120B | {"layer_types": ["full_attention"]}))


@pytest.mark.parametrize(("values", "megabytes"), [(DEEPSEEK_V4_FLASH, 5.6), (DEEPSEEK_V4_PRO, 8.0)])
def test_what_a_v4_sequence_keeps_besides(
    config_file: MakeConfig, values: dict[str, Any], megabytes: float
) -> None:
    layout = parse(config_file(values)).cache
    windows = [pool for pool in layout.pools if pool.window is not None and pool.dtype == "model"]
    assert sum(128 * pool.row_bytes(2) for pool in windows) / 1e6 == pytest.approx(megabytes, rel=0.01)
    assert layout.windows == (8, 128)
    assert layout.granule_tokens == 128


def test_v4_layers(config_file: MakeConfig) -> None:
    layers = parse(config_file(DEEPSEEK_V4_FLASH)).layers
    kinds = [layer.attention for layer in layers]
    assert [kind.ratio for kind in kinds if isinstance(kind, SharedKvSpec)] == [0, 0, *([4, 128] * 20), 4]
    assert [layer.ffn.gate.selection for layer in layers if isinstance(layer.ffn, MoeSpec)] == (
        ["table"] * 3 + ["greedy"] * 40
    )
    first, third = kinds[0], kinds[2]
    assert isinstance(first, SharedKvSpec)
    assert isinstance(third, SharedKvSpec)
    assert first.rope == RopeSpec(64, 10000.0)
    assert third.rope == RopeSpec(64, 160000.0, scaling=YarnSpec(16.0, 65536))
    assert third.indexer == IndexerSpec(64, 128, 512)


def test_v4_without_its_pattern_of_layers(config_file: MakeConfig) -> None:
    values = {key: value for key, value in DEEPSEEK_V4_FLASH.items() if key != "compress_ratios"}
    with pytest.raises(CheckpointError, match="compress_ratios"):
        parse(config_file(values))
