"""The command `expertmesh`: options in, one clear line out when something is wrong."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import expertmesh
from expertmesh.cli import chat_command, keys_commands
from expertmesh.cli.api_key import read_key
from expertmesh.cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, CliError
from expertmesh.configs.load import ConfigError, load_config
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.models.errors import CheckpointError

DEFAULT_ADDRESS = "127.0.0.1:9000"
MAX_PORT = 65535

app = typer.Typer(
    name="expertmesh",
    help="Serve Mixture-of-Experts language models on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(chat_command.chat)
app.add_typer(keys_commands.app)


class Dtype(StrEnum):
    """`--dtype`"""

    FP32 = "fp32"
    BF16 = "bf16"


class Scaled(StrEnum):
    """What `scale` scales."""

    EXPERTS = "experts"
    ROUTERS = "routers"


class Device(StrEnum):
    """`--device`"""

    CPU = "cpu"
    CUDA = "cuda"


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The deployment's YAML file.")]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint directory, instead of the file's.")
]
RoutersOption = Annotated[int | None, typer.Option("--routers", min=1, help="Router replicas.")]
ExpertsOption = Annotated[
    int | None, typer.Option("--experts", min=0, help="Expert hosts; 0 keeps the experts in the routers.")
]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Precision of the weights.")]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="What to compute on.")]
HttpPortOption = Annotated[
    int | None, typer.Option("--http-port", min=0, max=MAX_PORT, help="0 picks a free one.")
]
GrpcPortOption = Annotated[
    int | None, typer.Option("--grpc-port", min=0, max=MAX_PORT, help="0 picks a free one.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as dotted.key=value; repeatable."),
]
AddressOption = Annotated[
    str, typer.Option("--address", metavar="HOST:PORT", help="The deployment's gRPC endpoint.")
]
AppOption = Annotated[
    str | None, typer.Option("--app", help="Serve application, where the endpoint has several.")
]
ApiKeyOption = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help="Holds the API key; else EXPERTMESH_API_KEY does."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", min=0.001, help="Deadline of the call.")]


@app.callback(invoke_without_command=True)
def expertmesh_command(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Serve Mixture-of-Experts language models on Ray."""
    if version:
        print(f"expertmesh {expertmesh.__version__}")
        raise typer.Exit


@app.command()
def serve(
    config: ConfigArgument,
    model: ModelOption = None,
    routers: RoutersOption = None,
    experts: ExpertsOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    http_port: HttpPortOption = None,
    grpc_port: GrpcPortOption = None,
    settings: SetOption = None,
) -> None:
    """Serve a deployment in the foreground, on the cluster of RAY_ADDRESS or on a local one of its own."""
    overrides = _overrides(model, routers, experts, dtype, device, http_port, grpc_port, settings)
    _serve(load_config(config, overrides), Console())


@app.command()
def build(
    config: ConfigArgument,
    model: ModelOption = None,
    routers: RoutersOption = None,
    experts: ExpertsOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    http_port: HttpPortOption = None,
    grpc_port: GrpcPortOption = None,
    settings: SetOption = None,
) -> None:
    """Print the deployment as a config that Ray Serve deploys by itself."""
    from expertmesh.actors.gateway.serve_proxy import SERVICER_FUNCTIONS
    from expertmesh.cli.deploy_config import serve_deploy_config

    overrides = _overrides(model, routers, experts, dtype, device, http_port, grpc_port, settings)
    print(serve_deploy_config(load_config(config, overrides), SERVICER_FUNCTIONS), end="")


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text; - reads it from stdin.")] = None,
    prompt_ids: Annotated[str | None, typer.Option("--prompt-ids", help="Token ids: 1,2,3")] = None,
    address: AddressOption = DEFAULT_ADDRESS,
    app_name: AppOption = None,
    api_key_file: ApiKeyOption = None,
    model: Annotated[str, typer.Option("--model", help="The served model's name.")] = "",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p")] = None,
    repetition_penalty: Annotated[float | None, typer.Option("--repetition-penalty")] = None,
    presence_penalty: Annotated[float | None, typer.Option("--presence-penalty")] = None,
    frequency_penalty: Annotated[float | None, typer.Option("--frequency-penalty")] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Ends the text; repeatable.")] = None,
    ignore_eos: Annotated[bool | None, typer.Option("--ignore-eos")] = None,
    timeout_s: TimeoutOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Stream one generation to the terminal."""
    from expertmesh.cli import generate as command

    params = command.sampling_params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    request = command.build_request(text, prompt_ids, model, params)
    command.run(address, app_name, request, timeout_s, as_json, key=read_key(api_key_file))


@app.command()
def status(
    address: AddressOption = DEFAULT_ADDRESS,
    app_name: AppOption = None,
    api_key_file: ApiKeyOption = None,
    timeout_s: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Show the live generation, its members and what each has computed."""
    from expertmesh.cli import status as command

    command.run(address, app_name, timeout_s, as_json, Console(), read_key(api_key_file))


@app.command()
def scale(
    what: Annotated[Scaled, typer.Argument(help="Expert hosts, or routers.")],
    replicas: Annotated[int, typer.Argument(metavar="N", min=0, help="How many are to serve.")],
    address: AddressOption = DEFAULT_ADDRESS,
    app_name: AppOption = None,
    api_key_file: ApiKeyOption = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until they serve; else until it is accepted.")
    ] = True,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.001, help="The longest wait.")] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Set how many expert hosts or routers serve, while requests run."""
    from expertmesh.cli import scale as command

    command.run_scale(
        address,
        app_name,
        what.value,
        replicas,
        wait=wait,
        timeout_s=timeout_s,
        as_json=as_json,
        console=Console(),
        key=read_key(api_key_file),
    )


@app.command()
def rebalance(
    address: AddressOption = DEFAULT_ADDRESS,
    app_name: AppOption = None,
    api_key_file: ApiKeyOption = None,
    timeout_s: TimeoutOption = 40.0,
    as_json: JsonOption = False,
) -> None:
    """Move and copy experts until their hosts have even load, while requests run."""
    from expertmesh.cli import scale as command

    command.run_rebalance(address, app_name, timeout_s, as_json, Console(), read_key(api_key_file))


@app.command()
def reload(
    path: Annotated[Path, typer.Argument(help="The checkpoint's directory, the same on every node.")],
    address: AddressOption = DEFAULT_ADDRESS,
    app_name: AppOption = None,
    api_key_file: ApiKeyOption = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the old weights are gone, too.")
    ] = True,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.001, help="The longest wait.")] = 3600.0,
    as_json: JsonOption = False,
) -> None:
    """Serve another checkpoint of the same architecture, while requests run."""
    from expertmesh.cli import reload as command

    command.run(
        address,
        app_name,
        path.absolute(),
        wait=wait,
        timeout_s=timeout_s,
        as_json=as_json,
        console=Console(),
        key=read_key(api_key_file),
    )


@app.command(hidden=True)
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the generation.")] = False,
    http_port: HttpPortOption = None,
    grpc_port: GrpcPortOption = None,
    settings: SetOption = None,
) -> None:
    """Serve the demo checkpoint on this machine and stream one generation."""
    path = Path(str(resources.files("expertmesh.configs").joinpath("demo.yaml")))
    overrides = _overrides(None, None, None, None, None, http_port, grpc_port, settings)
    _serve(load_config(path, overrides), Console(), demo=True, once=once)


def _serve(config: DeploymentConfig, console: Console, demo: bool = False, once: bool = False) -> None:
    from expertmesh.actors.fitting import fit_to_model
    from expertmesh.cli.ports import check_free, with_free_ports
    from expertmesh.configs.environment import Environment
    from expertmesh.models.checkpoint import check_checkpoint

    spec = check_checkpoint(config.model.path, drafts=config.speculative.drafts)
    config = fit_to_model(config, spec)
    config = with_free_ports(config)
    address = None if demo else Environment.read().ray_address
    if address is None:
        check_free(config)
    # Late: this brings Ray and torch.
    from expertmesh.cli.demo import show_generation
    from expertmesh.cli.serving import Foreground

    when_ready = show_generation(console) if demo else None
    raise typer.Exit(Foreground(config, spec, address, console, when_ready, once).run())


def _overrides(
    model: Path | None,
    routers: int | None,
    experts: int | None,
    dtype: Dtype | None,
    device: Device | None,
    http_port: int | None,
    grpc_port: int | None,
    settings: list[str] | None,
) -> list[str]:
    """The options as `dotted.key=value`; `--set` comes first, so that an option of its own name wins."""
    named = {
        # Relative to where the command was typed; paths in the file are relative to the file.
        "model.path": None if model is None else str(model.expanduser().absolute()),
        "router.replicas": routers,
        "experts.replicas": experts,
        "model.dtype": dtype,
        "device": device,
        "http.port": http_port,
        "grpc.port": grpc_port,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    return [*(settings or []), *given]


def main() -> None:
    """The entry point: runs the command, and turns typed errors into one line and an exit code."""
    try:
        app()
    except (ConfigError, CheckpointError) as error:
        _fail(error, EXIT_USAGE)
    except CliError as error:
        _fail(error, error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(error: Exception, exit_code: int) -> None:
    for line in str(error).splitlines():
        print(f"expertmesh: {line}", file=sys.stderr)
    sys.exit(exit_code)
