"""Writes a DeepSeek-V3 checkpoint as GGUF for llama.cpp (architecture `deepseek2`).

The checkpoint has no tokenizer, and llama.cpp's server turns every token into text: it gets a vocabulary of
made-up words. Needs the package `gguf`.

Shape suffixes: V vocabulary, H heads, N key dim without rotary, D value dim, C compressed latent,
E experts, I intermediate size, M hidden size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from torch import Tensor

from serving_bench.engine import Dtype

SUFFIXES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
TOP_LEVEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
FIRST_EXPERT = re.compile(r"mlp\.experts\.0\.(gate|up|down)_proj\.weight")


def export_gguf(checkpoint: Path, file: Path, dtype: Dtype) -> None:
    """Writes `file` unless it is there and newer than the checkpoint.

    Norms, gates and biases stay in fp32, as llama.cpp wants them.
    """
    weights_file = checkpoint / "model.safetensors"
    if file.exists() and file.stat().st_mtime >= weights_file.stat().st_mtime:
        return
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "deepseek2")
    _add_settings(writer, config)
    _add_vocabulary(writer, config["vocab_size"])
    with safe_open(weights_file, framework="pt") as weights:
        for name, tensor in _converted(weights, config):
            _add_tensor(writer, name, tensor, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()
    partial.rename(file)


def _add_settings(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope, kv_lora = config["qk_rope_head_dim"], config["kv_lora_rank"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_head_count(config["num_attention_heads"])
    # Absorbed MLA is multi-query attention over the latent: one key head of kv_lora + rope.
    writer.add_head_count_kv(1)
    writer.add_key_length(kv_lora + rope)
    writer.add_value_length(kv_lora)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(kv_lora)
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    yarn = config["rope_scaling"]
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn["factor"])
    writer.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * yarn["mscale_all_dim"])


def _add_vocabulary(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{token}" for token in range(vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def _converted(weights: Any, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's tensors: experts stacked, kv_b split into the absorbed key and value parts."""
    heads, n_experts = config["num_attention_heads"], config["n_routed_experts"]
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    for name in weights.keys():  # noqa: SIM118
        if name in TOP_LEVEL:
            yield TOP_LEVEL[name], weights.get_tensor(name)
            continue
        layer, suffix = LAYER_NAME.fullmatch(name).groups()  # type: ignore[union-attr]
        if suffix in SUFFIXES:
            yield f"blk.{layer}.{SUFFIXES[suffix]}", weights.get_tensor(name)
        elif suffix == "self_attn.kv_b_proj.weight":
            kv_b = weights.get_tensor(name).view(heads, nope + v, -1)
            k_HNC, v_HDC = kv_b.split([nope, v], dim=1)
            yield f"blk.{layer}.attn_k_b.weight", k_HNC.transpose(1, 2).contiguous()
            yield f"blk.{layer}.attn_v_b.weight", v_HDC.contiguous()
        elif (match := FIRST_EXPERT.fullmatch(suffix)) is not None:
            names = (name.replace("experts.0.", f"experts.{expert}.") for expert in range(n_experts))
            yield (
                f"blk.{layer}.ffn_{match[1]}_exps.weight",
                torch.stack([weights.get_tensor(n) for n in names]),
            )


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, dtype: Dtype) -> None:
    if dtype == "fp32" or tensor.dim() == 1 or "ffn_gate_inp" in name:
        writer.add_tensor(name, tensor.float().numpy())
    else:
        raw = tensor.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
