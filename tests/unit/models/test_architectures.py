"""What the published configs mean: parameter counts, cache sizes, gates and rotary settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from published_configs import DEEPSEEK_V2 as V2
from published_configs import DEEPSEEK_V2_LITE as V2_LITE
from published_configs import DEEPSEEK_V3 as V3
from published_configs import KIMI_K2 as KIMI

from expertmesh.models.attention_specs import MlaSpec
from expertmesh.models.config import ConfigFile
from expertmesh.models.names import expected_tensors
from expertmesh.models.registry import find_architecture
from expertmesh.models.spec import GateSpec, ModelSpec, MoeSpec, RopeSpec, YarnSpec
from expertmesh.models.tensors import tensor_refs

MakeConfig = Callable[[dict[str, Any]], ConfigFile]


def parse(config: ConfigFile) -> ModelSpec:
    """The spec without weights."""
    return find_architecture(config).parse(config)


def latent_attention(spec: ModelSpec) -> MlaSpec:
    attention = spec.layers[0].attention
    assert isinstance(attention, MlaSpec)
    return attention


@pytest.mark.parametrize(
    ("values", "billions", "cache_bytes", "expert_bytes"),
    [
        (V2_LITE, 15.7, 31_104, 17.30e6),
        (V2, 235.7, 69_120, 47.19e6),
        (V3, 671.0, 70_272, 88.08e6),
        (KIMI, 1026, 70_272, 88.08e6),
    ],
    ids=["v2-lite", "v2", "v3", "kimi"],
)
def test_sizes(
    config_file: MakeConfig, values: dict[str, Any], billions: float, cache_bytes: int, expert_bytes: float
) -> None:
    config = config_file(values)
    spec = parse(config)
    names = find_architecture(config).names(spec)
    n_parameters = sum(math.prod(ref.shape) for ref in expected_tensors(names, spec))
    assert n_parameters / 1e9 == pytest.approx(billions, rel=1e-3)
    assert spec.cache.token_bytes(2) == cache_bytes
    layer = spec.moe_layers[0]
    assert isinstance(layer.ffn, MoeSpec)
    one_expert = names.expert(layer, layer.ffn, 0)
    sizes = [math.prod(ref.shape) for ref in tensor_refs(one_expert)]
    assert 2 * sum(sizes) == pytest.approx(expert_bytes, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "gate"),
    [
        (V2_LITE, GateSpec("softmax", "greedy", 64, 6)),
        (V2, GateSpec("softmax", "group_max", 160, 6, 8, 3, scale=16.0)),
        (V2 | {"norm_topk_prob": True}, GateSpec("softmax", "group_max", 160, 6, 8, 3, scale=16.0)),
        (V3, GateSpec("sigmoid", "group_top2", 256, 8, 8, 4, True, 2.5, True)),
        (KIMI, GateSpec("sigmoid", "greedy", 384, 8, 1, 1, True, 2.827, True)),
    ],
    ids=["v2-lite", "v2", "v2-norm", "v3", "kimi"],
)
def test_gates(config_file: MakeConfig, values: dict[str, Any], gate: GateSpec) -> None:
    ffn = parse(config_file(values)).moe_layers[0].ffn
    assert isinstance(ffn, MoeSpec)
    assert ffn.gate == gate


@pytest.mark.parametrize(("values", "mscale"), [(V2_LITE, 1.2608), (V2, 1.3689), (V3, 1.3689)])
def test_yarn_sharpens_attention(config_file: MakeConfig, values: dict[str, Any], mscale: float) -> None:
    attention = latent_attention(parse(config_file(values)))
    assert math.sqrt(attention.softmax_scale * math.sqrt(192)) == pytest.approx(mscale, abs=1e-4)
    assert attention.rope == RopeSpec(64, 10000.0, True, YarnSpec(40, 4096))


def test_plain_rope(config_file: MakeConfig) -> None:
    spec = parse(config_file(V3 | {"rope_scaling": None}))
    attention = latent_attention(spec)
    assert attention.rope == RopeSpec(64, 10000.0)
    assert attention.softmax_scale == pytest.approx(192**-0.5)


@pytest.mark.parametrize("values", [V2_LITE, V2, V3, KIMI], ids=["v2-lite", "v2", "v3", "kimi"])
def test_config_as_transformers_5_saves_it(config_file: MakeConfig, values: dict[str, Any]) -> None:
    saved = dict(values)
    scaling = saved.pop("rope_scaling")
    rope_type = scaling["type"]
    saved["rope_parameters"] = {**scaling, "rope_type": rope_type, "rope_theta": saved.pop("rope_theta")}
    for key in ("topk_method", "scoring_func", "moe_layer_freq"):
        if values["architectures"] == ["DeepseekV3ForCausalLM"]:
            del saved[key]
    assert parse(config_file(saved)) == parse(config_file(values))


def test_every_nth_layer_moe(config_file: MakeConfig) -> None:
    spec = parse(config_file(V3 | {"num_hidden_layers": 9, "moe_layer_freq": 2}))
    assert [layer.index for layer in spec.moe_layers] == [4, 6, 8]


def test_no_shared_expert(config_file: MakeConfig) -> None:
    ffn = parse(config_file(V3 | {"n_shared_experts": None})).moe_layers[0].ffn
    assert isinstance(ffn, MoeSpec)
    assert ffn.shared_intermediate == 0
