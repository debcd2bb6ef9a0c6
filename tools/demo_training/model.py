"""DeepSeek-V3 for training, written out in plain torch, with its multi-token-prediction (MTP) module.

Shape suffixes: B windows, T tokens of a window, N tokens of all windows, D hidden size, H heads, E experts,
K experts a token, G expert groups, V vocabulary. Parameters carry the published tensors' names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "vocab_size": 4096, "hidden_size": 192, "intermediate_size": 384, "moe_intermediate_size": 96,
    "num_hidden_layers": 6, "num_nextn_predict_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "ep_size": 1, "hidden_act": "silu",
    "rms_norm_eps": 1e-06, "max_position_embeddings": 2048, "rope_theta": 10000.0, "rope_scaling": None,
    "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02,
    "tie_word_embeddings": False, "use_cache": True,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


class Linear(nn.Module):
    """A weight without bias; the product runs in the input's dtype."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in).normal_(0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RmsNorm(nn.Module):
    """In float32; the result has the dtype of the products that follow."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self._eps, self._dtype = eps, dtype

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._eps) * self.weight).to(self._dtype)


def rope(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the interleaved pairs of the last dimension; the halves come out one behind the other."""
    even, odd = x_BTHD[..., 0::2].float(), x_BTHD[..., 1::2].float()
    cos, sin = cos[None, :, None], sin[None, :, None]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], -1).to(x_BTHD.dtype)


class Attention(nn.Module):
    """Multi-head latent attention with compressed queries."""

    def __init__(self, c: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        hidden, heads, eps = c["hidden_size"], c["num_attention_heads"], c["rms_norm_eps"]
        q_rank, kv_rank = c["q_lora_rank"], c["kv_lora_rank"]
        self.heads = heads
        self.nope, self.rot, self.v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        self.q_a_proj, self.q_a_layernorm = Linear(q_rank, hidden), RmsNorm(q_rank, eps, dtype)
        self.q_b_proj = Linear(heads * (self.nope + self.rot), q_rank)
        self.kv_a_proj_with_mqa = Linear(kv_rank + self.rot, hidden)
        self.kv_a_layernorm = RmsNorm(kv_rank, eps, dtype)
        self.kv_b_proj = Linear(heads * (self.nope + self.v), kv_rank)
        self.o_proj = Linear(hidden, heads * self.v)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x_BTD.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))).view(b, t, self.heads, -1)
        q_nope, q_rot = q.split([self.nope, self.rot], -1)
        compressed = self.kv_a_proj_with_mqa(x_BTD)
        latent, k_rot = compressed.split([compressed.shape[-1] - self.rot, self.rot], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, t, self.heads, -1)
        k_nope, v = kv.split([self.nope, self.v], -1)
        k_rot = rope(k_rot[:, :, None], cos, sin).expand(-1, -1, self.heads, -1)
        q = torch.cat([q_nope, rope(q_rot, cos, sin)], -1).transpose(1, 2)
        k = torch.cat([k_nope, k_rot], -1).transpose(1, 2)
        # The fused kernel of the CPU wants equal head sizes.
        v = F.pad(v, (0, self.nope + self.rot - self.v)).transpose(1, 2)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., : self.v]
        return self.o_proj(o.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(intermediate, hidden), Linear(intermediate, hidden)
        self.down_proj = Linear(hidden, intermediate)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Sigmoid scores; the bias takes part in the choice alone."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self._c = c
        self.weight = nn.Parameter(torch.empty(c["n_routed_experts"], c["hidden_size"]).normal_(0, 0.02))
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scores [N, E], chosen experts [N, K], their weights [N, K])."""
        c = self._c
        scores_NE = torch.sigmoid(F.linear(x_ND.float(), self.weight))
        with torch.no_grad():
            groups = (scores_NE + self.e_score_correction_bias).view(len(x_ND), c["n_group"], -1)
            best_NG = groups.topk(2, -1).values.sum(-1).topk(c["topk_group"], -1).indices
            keep = torch.zeros(groups.shape[:2], device=x_ND.device).scatter_(1, best_NG, 1).bool()
            allowed_NE = groups.masked_fill(~keep[..., None], float("-inf")).flatten(1)
            ids_NK = allowed_NE.topk(c["num_experts_per_tok"], -1).indices
        weights_NK = scores_NE.gather(1, ids_NK)
        weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]
        return scores_NE, ids_NK, weights_NK


class Moe(nn.Module):
    """Routed experts and one that every token takes; `load` and `balance_loss` are the last batch's."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        experts, hidden, inter = c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"]
        self._n_experts, self._top_k = experts, c["num_experts_per_tok"]
        self.gate = Gate(c)
        self.experts = nn.ModuleList([Mlp(hidden, inter) for _ in range(experts)])
        self.shared_experts = Mlp(hidden, inter * c["n_shared_experts"])
        self.load = torch.zeros(experts)
        self.balance_loss = torch.zeros(())

    def forward(self, x_BTD: Tensor) -> Tensor:
        b, t, _ = x_BTD.shape
        x_ND = x_BTD.flatten(0, 1)
        scores_NE, ids_NK, weights_NK = self.gate(x_ND)
        chosen = ids_NK.flatten()
        self.load = torch.bincount(chosen, minlength=self._n_experts)
        if self.training:
            self.balance_loss = self._balance(scores_NE.view(b, t, -1), chosen.view(b, -1))
        order = torch.argsort(chosen, stable=True)
        token = order // self._top_k
        weights = weights_NK.flatten()[order, None]
        out_ND = torch.zeros(x_ND.shape, dtype=torch.float32, device=x_ND.device)
        start = 0
        for count, expert in zip(self.load.tolist(), self.experts, strict=True):
            rows = slice(start, start + count)
            out_ND = out_ND.index_add(0, token[rows], expert(x_ND[token[rows]]).float() * weights[rows])
            start += count
        return (out_ND + self.shared_experts(x_ND)).view_as(x_BTD)

    def _balance(self, scores_BTE: Tensor, chosen: Tensor) -> Tensor:
        """The sequence-wise balance loss of the DeepSeek-V3 paper."""
        experts = self._n_experts
        share_BE = torch.stack([torch.bincount(row, minlength=experts) for row in chosen]).float()
        share_BE = share_BE * experts / chosen.shape[1]
        mean_BE = (scores_BTE / scores_BTE.sum(-1, keepdim=True)).mean(1)
        return (share_BE * mean_BE).sum(-1).mean()


class Layer(nn.Module):
    """Attention, then a dense or a MoE feed-forward part, both on the residual stream in float32."""

    def __init__(self, c: dict[str, Any], dense: bool, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm = RmsNorm(hidden, eps, dtype)
        self.post_attention_layernorm = RmsNorm(hidden, eps, dtype)
        self.self_attn = Attention(c, dtype)
        self.mlp: Mlp | Moe = Mlp(hidden, c["intermediate_size"]) if dense else Moe(c)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos, sin)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class DeepseekV3(nn.Module):
    """The whole model. The MTP module shares embedding and head: h' = Layer(eh_proj[enorm(embedding of the
    next token), hnorm(h)]), and head(norm(h')) predicts the token after the next."""

    def __init__(self, c: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.c = c
        hidden, eps, n_layers = c["hidden_size"], c["rms_norm_eps"], c["num_hidden_layers"]
        self.embed_tokens, self.lm_head = Linear(c["vocab_size"], hidden), Linear(c["vocab_size"], hidden)
        self.layers = nn.ModuleList(
            [Layer(c, i < c["first_k_dense_replace"], dtype) for i in range(n_layers)]
        )
        self.norm = RmsNorm(hidden, eps, dtype)
        self.mtp = nn.ModuleDict(
            {
                "enorm": RmsNorm(hidden, eps, dtype),
                "hnorm": RmsNorm(hidden, eps, dtype),
                "eh_proj": Linear(hidden, 2 * hidden),
                "layer": Layer(c, False, dtype),
                "norm": RmsNorm(hidden, eps, dtype),
            }
        )
        for name, parameter in self.named_parameters():
            # What writes into the residual stream starts smaller.
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data /= math.sqrt(2 * n_layers)
        rot = c["qk_rope_head_dim"]
        frequencies = 1.0 / c["rope_theta"] ** (torch.arange(0, rot, 2).float() / rot)
        angles = torch.arange(c["max_position_embeddings"]).float()[:, None] * frequencies[None]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @property
    def moe_parts(self) -> list[Moe]:
        """The MoE parts in order, the MTP module's last."""
        layers = [*self.layers, self.mtp["layer"]]
        return [layer.mlp for layer in layers if isinstance(layer.mlp, Moe)]

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """The last hidden state of each token, normalised."""
        t = ids_BT.shape[1]
        x_BTD = F.embedding(ids_BT, self.embed_tokens.weight)
        for layer in self.layers:
            x_BTD = layer(x_BTD, self.cos[:t], self.sin[:t])
        return self.norm(x_BTD)

    def mtp_hidden(self, h_BTD: Tensor, next_ids_BT: Tensor) -> Tensor:
        """The MTP module's hidden state of each token."""
        t = next_ids_BT.shape[1]
        embedding = F.embedding(next_ids_BT, self.embed_tokens.weight)
        x = self.mtp["eh_proj"](torch.cat([self.mtp["enorm"](embedding), self.mtp["hnorm"](h_BTD)], -1))
        return self.mtp["norm"](self.mtp["layer"](x.float(), self.cos[:t], self.sin[:t]))

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean losses of the next token and of the one after it, and the balance loss, for ids [B, T+2]."""
        h_BTD = self.hidden(ids[:, :-2])
        main = self._loss(h_BTD, ids[:, 1:-1])
        mtp = self._loss(self.mtp_hidden(h_BTD, ids[:, 1:-1]), ids[:, 2:])
        return main, mtp, torch.stack([part.balance_loss for part in self.moe_parts]).sum()

    def _loss(self, h_BTD: Tensor, target_BT: Tensor) -> Tensor:
        logits_NV = self.lm_head(h_BTD).float().flatten(0, 1)
        return F.cross_entropy(logits_NV, target_BT.flatten())
