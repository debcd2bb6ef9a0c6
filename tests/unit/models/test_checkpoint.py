"""Opening a checkpoint: every form that occurs, and one clear error for everything that can be wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expertmesh.models.checkpoint import check_checkpoint
from expertmesh.models.errors import CheckpointError

GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def refusal(folder: Path, *parts: str) -> None:
    """The checkpoint is refused with a message that holds every part."""
    with pytest.raises(CheckpointError) as caught:
        check_checkpoint(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("n_shards", "index"), [(1, False), (3, True), (3, False)])
def test_forms(tiny: Any, n_shards: int, index: bool) -> None:
    spec = check_checkpoint(tiny.write(n_shards, index=index))
    assert spec.architecture == "DeepseekV3ForCausalLM"
    assert spec.n_experts == 5
    assert [layer.index for layer in spec.moe_layers] == [1, 2]
    assert spec.eos_token_ids == (1,)


@pytest.mark.parametrize(
    ("stored", "dtype"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp32")]
)
def test_dtype_is_that_of_the_weights(tiny: Any, stored: torch.dtype, dtype: str) -> None:
    tiny.tensors = {name: tensor.to(stored) for name, tensor in tiny.tensors.items()}
    assert check_checkpoint(tiny.write()).dtype == dtype


def test_more_end_tokens_in_generation_config(tiny: Any) -> None:
    folder = tiny.write()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1]}))
    assert check_checkpoint(folder).eos_token_ids == (1, 7)


def test_prediction_modules_behind_the_last_layer_are_ignored(tiny: Any) -> None:
    tiny.tensors["model.layers.3.eh_proj.weight"] = torch.zeros(2, 2)
    tiny.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    check_checkpoint(tiny.write())


def test_tied_embeddings_need_no_head(tiny: Any) -> None:
    tiny.config["tie_word_embeddings"] = True
    del tiny.tensors["lm_head.weight"]
    check_checkpoint(tiny.write())


def test_checking_imports_no_torch() -> None:
    code = "import sys, expertmesh.models.checkpoint; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_directory(tmp_path: Path) -> None:
    refusal(tmp_path / "nothing", "nothing", "no such checkpoint directory")


def test_missing_config(tiny: Any) -> None:
    folder = tiny.write()
    (folder / "config.json").unlink()
    refusal(folder, "config.json", "missing")


@pytest.mark.parametrize("text", ["{", "[]", "\xff\xfe"])
def test_bad_json(tiny: Any, text: str) -> None:
    folder = tiny.write()
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refusal(folder, "config.json")


def test_unknown_architecture(tiny: Any) -> None:
    tiny.config["architectures"] = ["FalconForCausalLM"]
    refusal(
        tiny.write(), "'architectures'", "FalconForCausalLM", "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", "16"),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", True),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("hidden_act", "gelu"),
        ("n_group", 2),
        ("topk_group", 2),
        ("num_experts_per_tok", 6),
        ("qk_rope_head_dim", 5),
        ("rope_scaling", {"type": "longrope"}),
        ("rope_scaling", []),
        ("rms_norm_eps", "1e-6"),
        ("norm_topk_prob", "yes"),
        ("quantization_config", {"quant_method": "awq"}),
        ("quantization_config", {"quant_method": "fp8", "fmt": "e5m2"}),
        ("quantization_config", {"quant_method": "fp8", "activation_scheme": "static"}),
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128]}),
        ("architectures", "DeepseekV3ForCausalLM"),
    ],
)
def test_bad_key(tiny: Any, key: str, value: Any) -> None:
    tiny.config[key] = value
    refusal(tiny.write(), "config.json", "type" if value == {"type": "longrope"} else f"'{key}")


def test_no_weights(tiny: Any) -> None:
    folder = tiny.write()
    (folder / "model.safetensors").unlink()
    refusal(folder, "no weights")


def test_pickled_weights_are_refused(tiny: Any) -> None:
    folder = tiny.write()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refusal(folder, "pytorch_model.bin", "pickle", "safetensors")


def test_missing_tensor(tiny: Any) -> None:
    del tiny.tensors[GATE]
    refusal(tiny.write(), GATE, "missing")


def test_wrong_shape(tiny: Any) -> None:
    tiny.tensors[GATE] = torch.zeros(9, 16)
    refusal(tiny.write(), "model.safetensors", GATE, "[9, 16]", "[8, 16]")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_tensor(tiny: Any, dtype: torch.dtype) -> None:
    tiny.tensors[GATE] = torch.zeros(8, 16).to(dtype)
    refusal(tiny.write(), "model.safetensors", GATE, "quantised")


def test_tensor_that_the_config_does_not_know(tiny: Any) -> None:
    tiny.tensors["model.layers.0.self_attn.o_proj.bias"] = torch.zeros(16)
    refusal(tiny.write(), "o_proj.bias", "no such tensor")


@pytest.mark.parametrize("n_bytes", [0, 5, 100, -4])
def test_truncated_file(tiny: Any, n_bytes: int) -> None:
    file = tiny.write() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:n_bytes])
    refusal(tiny.folder, "model.safetensors", "truncated")


def test_header_that_is_no_json(tiny: Any) -> None:
    file = tiny.write() / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8] = 0
    file.write_bytes(data)
    refusal(tiny.folder, "model.safetensors", "JSON")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]},
        "x",
    ],
)
def test_malformed_entry(tiny: Any, entry: Any) -> None:
    header = json.dumps({"strange": entry}).encode()
    file = tiny.write() / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    refusal(tiny.folder, "model.safetensors", "'strange'")


def spoil_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the index's weight map."""
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def test_index_without_map(tiny: Any) -> None:
    folder = tiny.write(3)
    (folder / "model.safetensors.index.json").write_text("{}")
    refusal(folder, "model.safetensors.index.json", "weight_map")


def test_missing_shard(tiny: Any) -> None:
    folder = tiny.write(3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refusal(folder, "model-00002-of-00003.safetensors", "missing")


def test_index_that_names_the_wrong_shard(tiny: Any) -> None:
    folder = tiny.write(3)
    file_names = sorted(file.name for file in folder.glob("*.safetensors"))

    def move(weight_map: dict[str, Any]) -> None:
        weight_map[EMBEDDING] = next(name for name in file_names if name != weight_map[EMBEDDING])

    spoil_index(folder, move)
    refusal(folder, EMBEDDING, "missing")


def test_index_that_leads_out_of_the_directory(tiny: Any) -> None:
    folder = tiny.write(3)
    spoil_index(folder, lambda weight_map: weight_map.update({EMBEDDING: "../other.safetensors"}))
    refusal(folder, "index.json", "not a file of this directory")


def test_tensor_in_two_shards(tiny: Any) -> None:
    folder = tiny.write(3, index=False)
    (folder / "more.safetensors").write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
    refusal(folder, "more.safetensors", "model-00001-of-00003.safetensors")


def test_errors_survive_a_trip_between_processes() -> None:
    error = CheckpointError(Path("a/config.json"), "wrong", "key 'x'")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a/config.json: key 'x': wrong"


def test_a_missing_drafter_is_named(tiny: Any, demo_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"num_nextn_predict.*no multi-token-prediction module"):
        check_checkpoint(tiny.write(), drafts=True)
    without = tmp_path / "without"
    shutil.copytree(demo_checkpoint, without)
    tensors = load_file(without / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if name != "model.layers.6.eh_proj.weight"}
    save_file(kept, without / "model.safetensors")
    check_checkpoint(without)
    with pytest.raises(CheckpointError, match=r"model\.layers\.6\.eh_proj\.weight.*missing"):
        check_checkpoint(without, drafts=True)


def test_a_drafter_adds_a_layer(demo_checkpoint: Path) -> None:
    plain, drafting = (check_checkpoint(demo_checkpoint, drafts=drafts) for drafts in (False, True))
    assert plain.layers == drafting.layers
    assert [len(spec.moe_layers) for spec in (plain, drafting)] == [5, 6]
    assert [len(spec.cache.layers) for spec in (plain, drafting)] == [6, 7]
