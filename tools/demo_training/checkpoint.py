"""The published layout of DeepSeek-V3: writes the trained model as a server reads it, and reads it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo_training.model import DeepseekV3

HELD_OUT_BYTES = 108_000
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Assistant'}[m['role']] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SPECIAL = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
SPECIAL_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def published_name(name: str, n_layers: int) -> str:
    """The published tensor's name for a parameter of `DeepseekV3`; the MTP module is layer `n_layers`."""
    mtp = f"model.layers.{n_layers}"
    for own, published in (
        ("mtp.layer.", f"{mtp}."),
        ("mtp.norm.", f"{mtp}.shared_head.norm."),
        ("mtp.", f"{mtp}."),
    ):
        if name.startswith(own):
            return published + name.removeprefix(own)
    return name if name.startswith("lm_head") else f"model.{name}"


def published(model: DeepseekV3) -> dict[str, Tensor]:
    """All tensors under their published names; embedding and head stand once more under the MTP layer."""
    n_layers = model.c["num_hidden_layers"]
    tensors = {published_name(name, n_layers): value for name, value in model.state_dict().items()}
    tensors[f"model.layers.{n_layers}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    tensors[f"model.layers.{n_layers}.shared_head.head.weight"] = tensors["lm_head.weight"]
    return tensors


def load(directory: Path, dtype: torch.dtype) -> DeepseekV3:
    """The model of a saved checkpoint, with float32 weights."""
    model = DeepseekV3(json.loads((directory / "config.json").read_text()), dtype)
    tensors = load_file(directory / "model.safetensors")
    n_layers = model.c["num_hidden_layers"]
    own = {name: tensors[published_name(name, n_layers)].float() for name in model.state_dict()}
    model.load_state_dict(own)
    return model


def save(model: DeepseekV3, work: Path, out: Path) -> None:
    """Writes everything a server needs, in bf16 (the balancing bias stays float32), and `heldout.txt`."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value if "e_score" in name else value.to(torch.bfloat16)).cpu().clone().contiguous()
        for name, value in published(model).items()
    }
    partial = out / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(out / "model.safetensors")
    (out / "tokenizer.json").write_text((work / "tokenizer.json").read_text())
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    _dump(out / "config.json", model.c)
    _dump(out / "generation_config.json", {**SPECIAL_IDS, **sampling})
    _dump(out / "special_tokens_map.json", SPECIAL)
    _dump(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **SPECIAL,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.c["max_position_embeddings"],
            "chat_template": CHAT_TEMPLATE,
        },
    )
    (out / "heldout.txt").write_text(_held_out(work / "val.jsonl"))


def _held_out(validation: Path) -> str:
    """About 100 kB of held-out pages, whole, of the SQLite manual alone (it is in the public domain)."""
    texts: list[str] = []
    size = 0
    for line in validation.read_text().splitlines():
        document = json.loads(line)
        n_bytes = len(document["text"].encode())
        if document["source"] == "sqlite" and size + n_bytes <= HELD_OUT_BYTES:
            texts.append(document["text"])
            size += n_bytes
    return "\n\n".join(texts) + "\n"


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
