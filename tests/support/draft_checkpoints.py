"""Tiny checkpoints with a multi-token-prediction module, and transformers' layers as its reference.

transformers drops such modules when it loads. So a model is made with one layer more; the last layer is
stored as the module's, with projections and norms of its own, and the reference joins the parts by hand.

Shape suffixes: T tokens, D hidden size, S residual streams, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import Family, Kind, load_reference, make_tiny_checkpoint
from torch import Tensor

DraftKind = Literal["v3", "v3.2", "glm4-moe", "v4"]
_PER_LAYER = ("layer_types", "mlp_layer_types", "indexer_types")
_SMALL = 0.04
_WRITES = ("o_proj.weight", "o_b_proj.weight", "wo_b.weight", "down_proj.weight", ".w2.weight")
"""The ends of what writes into the residual stream."""


def make_draft_checkpoint(
    kind: DraftKind, folder: Path, *, agreeable: bool = False, seed: int = 0, **changes: Any
) -> Path:
    """Writes a random fp32 checkpoint whose last layer is the module's.

    Args:
        agreeable: layers add little to the embedding, and the module goes by the token alone: most drafts
            are what the model says.
    """
    full = _one_layer_more(kind, folder / "full", seed, changes)
    config = json.loads((full / "config.json").read_text())
    n_layers = config["num_hidden_layers"] - 1
    config |= {"num_hidden_layers": n_layers, "num_nextn_predict_layers": 1}
    config |= {key: config[key][:n_layers] for key in _PER_LAYER if config.get(key)}
    tensors = load_file(full / "model.safetensors")
    if agreeable:
        for name in tensors:
            if name.endswith(_WRITES):
                tensors[name] *= _SMALL
        save_file(tensors, full / "model.safetensors", {"format": "pt"})
    old = f"model.layers.{n_layers}."
    new = "mtp.0." if kind == "v4" else old
    stored = {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}
    extra = _module_tensors(kind, config, seed, tensors["model.norm.weight"] if agreeable else None)
    stored |= {new + name: tensor for name, tensor in extra.items()}
    if kind != "v4":  # Published with copies, which nobody needs.
        stored[f"{new}embed_tokens.weight"] = torch.zeros(2)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(extra, full / "module.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _one_layer_more(kind: DraftKind, folder: Path, seed: int, changes: dict[str, Any]) -> Path:
    from tiny_families import TINY_FAMILIES

    base: Kind | Family = kind
    values: dict[str, Any] = TINY_FAMILIES[kind][1] if kind in TINY_FAMILIES else {"num_hidden_layers": 4}
    more = {"num_hidden_layers": changes.pop("num_hidden_layers", values["num_hidden_layers"]) + 1}
    if kind == "v4":
        more["layer_types"] = [*values["layer_types"], "sliding_attention"]
        more["mlp_layer_types"] = [*values["mlp_layer_types"], "moe"]
    return make_tiny_checkpoint(base, folder, seed=seed, **more, **changes)


def _module_tensors(
    kind: DraftKind, config: dict[str, Any], seed: int, agree_with: Tensor | None
) -> dict[str, Tensor]:
    """`agree_with`: the model's final norm, for a module that says the same."""
    draw = torch.Generator().manual_seed(seed + 100)
    width = config["hidden_size"]

    def projection() -> Tensor:
        return torch.randn(width, width, generator=draw) * 0.15

    def norm() -> Tensor:
        return torch.ones(width) if agree_with is not None else torch.rand(width, generator=draw) + 0.5

    of_embedding, of_hidden = projection(), projection()
    final_norm = norm() if agree_with is None else agree_with.clone()
    if agree_with is not None:
        of_embedding, of_hidden = torch.eye(width), of_hidden * _SMALL
    tensors = {"enorm.weight": norm(), "hnorm.weight": norm()}
    if kind != "v4":
        joined = torch.cat((of_embedding, of_hidden), 1)
        return tensors | {"eh_proj.weight": joined, "shared_head.norm.weight": final_norm}
    n_streams = config["hc_mult"]
    return tensors | {
        "e_proj.weight": of_embedding,
        "h_proj.weight": of_hidden,
        "norm.weight": final_norm,
        "hc_head_fn": torch.randn(n_streams, n_streams * width, generator=draw) * 0.1,
        "hc_head_base": torch.randn(n_streams, generator=draw) * 0.3,
        "hc_head_scale": torch.rand(1, generator=draw) + 0.5,
    }


class DraftReference:
    """The model and its module, by transformers' layers and plain torch."""

    def __init__(self, folder: Path) -> None:
        full = folder / "full"
        whole = load_reference(full)
        self._tensors = load_file(full / "module.safetensors")
        self._head = whole.lm_head
        self._module_layer = whole.model.layers[-1]
        self._model = whole.model
        self._embedding = whole.model.embed_tokens
        self._eps = whole.config.rms_norm_eps
        self._module = copy.copy(whole.model)
        self._module._modules = dict(whole.model._modules)
        self._module.layers = torch.nn.ModuleList([self._module_layer])
        self._model.layers = torch.nn.ModuleList(list(whole.model.layers)[:-1])

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> tuple[Tensor, Tensor]:
        """The model's logits of all tokens but the last, and the module's for the token after the next."""
        ids, behind = torch.tensor([token_ids[:-1]]), torch.tensor([token_ids[1:]])
        streams: list[Tensor] = []
        with self._model.layers[-1].register_forward_hook(lambda *call: streams.append(_first(call[2]))):
            final = self._model(input_ids=ids, use_cache=False).last_hidden_state
        state = streams[0] if "e_proj.weight" in self._tensors else final
        joined = self._join(self._embedding(behind), state)
        left: list[Tensor] = []
        layer = self._module_layer
        # The model makes masks and angles for its layers; the input is put in their place.
        with (
            layer.register_forward_pre_hook(lambda module, args: (joined, *args[1:])),
            layer.register_forward_hook(lambda *call: left.append(_first(call[2]))),
        ):
            self._module(input_ids=behind, use_cache=False)
        return self._head(final)[0], self._head(self._final(left[0]))[0]

    def _join(self, embedding: Tensor, state: Tensor) -> Tensor:
        tensors = self._tensors
        embedding = self._normed(embedding, "enorm.weight")
        state = self._normed(state, "hnorm.weight")
        if "eh_proj.weight" in tensors:
            return torch.cat((embedding, state), -1) @ tensors["eh_proj.weight"].T
        return (embedding @ tensors["e_proj.weight"].T).unsqueeze(2) + state @ tensors["h_proj.weight"].T

    def _final(self, state: Tensor) -> Tensor:
        tensors = self._tensors
        if "eh_proj.weight" in tensors:
            return self._normed(state, "shared_head.norm.weight")
        flat = state.flatten(2)
        flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self._eps)
        mixes = flat @ tensors["hc_head_fn"].T * tensors["hc_head_scale"] + tensors["hc_head_base"]
        weights = torch.sigmoid(mixes) + 1e-6
        return self._normed((state * weights.unsqueeze(-1)).sum(2), "norm.weight")

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps) * self._tensors[name]


def _first(out: Any) -> Tensor:
    state: Tensor = out[0] if isinstance(out, tuple) else out
    return state
