"""Other weights while requests run: no stream fails, and each is computed with one version alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file
from serve_clients import Answer, Call, random_prompt
from serve_cluster import Deployment
from steady_calls import SteadyCalls
from typer.testing import CliRunner

from expertmesh.cli.main import app
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb

N_STREAMS = 4
VOCAB = 4096
CALLS = [
    Call(random_prompt(5 + 9 * i, VOCAB, seed=i), 30 + 5 * i, temperature=0.8 * (i % 2), seed=i)
    for i in range(N_STREAMS)
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, demo_config: Callable[..., DeploymentConfig]) -> Path:
    """The demo checkpoint with other weights, as if it had been trained further."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tuned"
    shutil.copytree(demo_config().model.path, folder)
    numbers = torch.Generator().manual_seed(0)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for tensor in tensors.values():
            noise = torch.randn(tensor.shape, generator=numbers) * tensor.float().abs().mean()
            tensor.add_((0.1 * noise).to(tensor.dtype))
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def deployment(deterministic_2x2: Deployment) -> Deployment:
    """Nobody uses it behind these tests: it ends with other weights."""
    return deterministic_2x2


def reload(deployment: Deployment, path: Path) -> str:
    """`expertmesh reload` to its end; what it prints."""
    arguments = ["reload", str(path), "--address", deployment.grpc_address, "--app", deployment.config.name]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def versions(deployment: Deployment) -> list[int]:
    return [weights.version for weights in deployment.topology().weights]


def test_weights_change_and_change_back_under_load(deployment: Deployment, tuned: Path) -> None:
    original = Path(deployment.config.model.path)
    deployment.until_settled(2, 2)

    def there_and_back() -> None:
        assert "version 2" in reload(deployment, tuned)
        assert versions(deployment) == [2]
        reload(deployment, original)
        assert versions(deployment) == [3]

    # Without pauses: everyone calls while only the other weights are there.
    steady = SteadyCalls(deployment, CALLS, pauses=0)
    expected = steady.alone()
    answers = steady.during(there_and_back) + steady.during(lambda: None)
    tokens: dict[tuple[int, bool], list[int]] = {}
    for index, answer in answers:
        assert answer.finish_reason == "length"
        [version] = answer.weights
        assert answer.token_ids == tokens.setdefault((index, version == 2), answer.token_ids)
    assert {version for _, answer in answers for version in answer.weights} == {1, 2, 3}
    for index in range(N_STREAMS):
        assert tokens[index, False] == expected[index]
        assert tokens[index, True] != expected[index]


def test_a_router_that_is_lost_between_two_versions_harms_no_stream(
    deployment: Deployment, tuned: Path
) -> None:
    """A stream that began with the old weights goes on with them, on another router."""
    deployment.until_settled(2, 2)
    old, new = versions(deployment)[-1], versions(deployment)[-1] + 1
    long = Call(random_prompt(20, VOCAB, seed=9), 400)

    async def run(act: Callable[[], None] | None) -> Answer:
        async with deployment.clients() as clients:
            begun = asyncio.Event()

            def on_tokens(n_tokens: int) -> bool:
                if n_tokens >= 20:
                    begun.set()
                return True

            stream = asyncio.create_task(clients.grpc_stream(long, on_tokens))
            await begun.wait()
            if act is not None:
                await asyncio.to_thread(act)
            return await stream

    def reload_and_kill() -> None:
        deployment.cluster_call("Reload", pb.ReloadRequest(path=str(tuned)))
        deployment.until(lambda t: [w.version for w in t.weights] == [old, new], "both are served")
        busy = max(deployment.topology().routers, key=lambda router: router.cache_blocks_used)
        os.kill(busy.pid, signal.SIGKILL)

    undisturbed = asyncio.run(run(None))
    disturbed = asyncio.run(run(reload_and_kill))
    assert disturbed.weights == {old}
    assert disturbed.token_ids == undisturbed.token_ids
    deployment.until(lambda t: [w.version for w in t.weights] == [new], "the old weights are gone")
    deployment.until_settled(2, 2)


def test_what_cannot_take_the_place_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    before = versions(deployment)
    for path, words in ((str(tmp_path), "config.json"), ("relative", "absolute")):
        with pytest.raises(grpc.RpcError) as refused:
            deployment.cluster_call("Reload", pb.ReloadRequest(path=path))
        assert words in refused.value.details()
    assert versions(deployment) == before
