"""Deployment files: defaults, overrides, paths, and errors that name the culprit."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertmesh.configs.load import ConfigError, config_from_dict, load_config, valid_keys

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "deployment.yaml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_the_demo_configuration_points_at_its_checkpoint():
    config = load_config(REPOSITORY / "configs" / "demo.yaml")
    assert (config.gateway.replicas, config.router.replicas, config.experts.replicas) == (1, 1, 2)
    assert config.model.path == REPOSITORY / "configs" / "demo"
    assert (config.model.path / "model.safetensors").is_file()


def test_a_relative_path_starts_at_the_file_and_an_absolute_one_stays(write, tmp_path):
    assert load_config(write("model: {path: weights}")).model.path == tmp_path / "weights"
    assert load_config(write("model: {path: ../weights}")).model.path == tmp_path.parent / "weights"
    assert load_config(write("model: {path: /weights}")).model.path == Path("/weights")


def test_the_name_of_the_checkpoint_folder_is_the_default_name(write):
    assert load_config(write("model: {path: some/weights}")).served_name == "weights"
    assert load_config(write("model: {path: w, served_name: other}")).served_name == "other"


def test_overrides_are_yaml_and_the_later_one_wins(write):
    path = write("model: {path: w}\nrouter: {replicas: 4, cpus: 2}\n")
    config = load_config(
        path,
        [
            "router.replicas=2",
            "engine.deterministic=true",
            "router.replicas=3",
            "limits.max_prompt_tokens=7",
        ],
    )
    assert config.router.replicas == 3
    assert config.router.cpus == 2
    assert config.engine.deterministic is True
    assert config.limits.max_prompt_tokens == 7


def test_an_override_may_hold_a_whole_section(write):
    config = load_config(write("model: {path: w}"), ["http={host: 0.0.0.0, port: 1234}"])
    assert (config.http.host, config.http.port) == ("0.0.0.0", 1234)


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("model: {path: w}\nrouter: {replicaz: 2}", "router.replicaz", "router.replicas"),
        ("model: {path: w}\nmodel_path: w", "model_path", "model.path"),
        ("model: {path: w}\ndeterministic: true", "deterministic", "engine.deterministic"),
        ("model: {path: w}\nexpert: {replicas: 2}", "expert", "experts"),
        ("model: {path: w}\nscheduler: {drain_s: 2}", "scheduler.drain_s", "shutdown.drain_s"),
    ],
)
def test_an_unknown_key_is_refused_with_file_key_and_nearest(write, text, key, nearest):
    path = write(text)
    message = refusal(path)
    assert message == f"{path}: {key}: unknown key; the nearest valid one is `{nearest}`"


def test_a_wrong_value_names_file_key_and_value(write):
    path = write("model: {path: w}\nrouter: {replicas: 0}\ndevice: tpu\n")
    lines = refusal(path).splitlines()
    assert len(lines) == 2
    assert f"{path}: device: Input should be 'cpu' or 'cuda', not 'tpu'" in lines
    assert f"{path}: router.replicas: Input should be greater than or equal to 1, not 0" in lines


def test_a_wrong_override_names_the_override_and_not_the_file(write):
    path = write("model: {path: w}")
    assert refusal(path, "router.replicas=many").startswith("--set router.replicas=many: router.replicas: ")
    assert "`router.replicas`" in refusal(path, "router.replica=2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["exchange.transport=nccl"], "exchange.transport: nccl needs device: cuda"),
        (["device=cuda", "exchange.transport=local"], "exchange.transport: local needs device: cpu"),
        (
            ["scheduler.max_step_tokens=8"],
            "scheduler.min_chunk_tokens: is above scheduler.max_step_tokens, 8",
        ),
        (["failure.deadline_s=1"], "failure.heartbeat_s: must be below failure.deadline_s, 1.0"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(write, overrides, message):
    assert refusal(write("model: {path: w}"), *overrides).endswith(f": {message}")


@pytest.mark.parametrize("override", ["router.replicas", "=3", "router..replicas=2", ".=1"])
def test_an_override_without_key_or_value_is_refused(write, override):
    assert "must look like dotted.key=value" in refusal(write("model: {path: w}"), override)


def test_an_override_cannot_go_into_a_plain_value(write):
    message = refusal(write("model: {path: w}\ndevice: cpu"), "device.kind=cuda")
    assert "device is 'cpu', which has no keys in it" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must be a mapping"),
        ("- a\n- b\n", "must be a mapping"),
        ("router: {replicas: 1}", "model: is missing"),
        ("model: {dtype: bf16}", "model.path: is missing"),
        ("model: weights", "model: must be a section of settings, not 'weights'"),
        ("model: {path: w}\nengine:\n", "engine: must be a section of settings, not None"),
        ("model: {path: w}\nrouter: [}", ":2: is not YAML"),
        ("model: {path: w}\nname: a\nname: b\n", ":3: is not YAML: the key 'name' stands twice"),
    ],
)
def test_a_file_that_is_no_deployment_says_why(write, text, part):
    path = write(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert part in message


def test_a_missing_file_is_named(tmp_path):
    assert (
        refusal(tmp_path / "none.yaml")
        == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"
    )


def test_settings_survive_the_trip_through_a_serve_deploy_config():
    config = load_config(REPOSITORY / "configs" / "demo.yaml", ["experts.replicas=0"])
    again = config_from_dict(config.model_dump(mode="json"))
    assert again == config
    assert again.fused


def test_settings_from_a_dictionary_name_the_key():
    with pytest.raises(ConfigError, match=r"deployment settings: experts\.replicas: "):
        config_from_dict({"model": {"path": "w"}, "experts": {"replicas": -1}})


def test_every_field_is_a_valid_key():
    keys = set(valid_keys())
    assert {"model", "model.path", "shutdown.drain_s", "grpc.port", "name"} <= keys
    assert all(not key.startswith("_") for key in keys)


@pytest.mark.parametrize(
    ("resources", "part"), [("{GPU: 1}", "one of Ray's own"), ("{hosts: 0}", "must be above 0")]
)
def test_custom_resources_have_names_of_their_own_and_amounts(write, resources, part):
    message = refusal(write("model: {path: w}"), f"experts.resources={resources}")
    assert "experts.resources" in message
    assert part in message


def test_speculation_is_off_unless_asked_for_and_off_is_no_truth_value(write):
    assert load_config(write("model: {path: weights}")).speculative.max_drafts == 0
    spelled = load_config(
        write("model: {path: weights}\nspeculative: {method: off, tokens: 3}")
    ).speculative
    assert (spelled.method, spelled.max_drafts) == ("off", 0)
    assert load_config(write("model: {path: w}"), ["speculative.method=mtp"]).speculative.max_drafts == 1
    assert "speculative.method" in refusal(write("model: {path: w}\nspeculative: {method: on}"))
