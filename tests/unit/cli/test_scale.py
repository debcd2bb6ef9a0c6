"""`scale` and `rebalance` against a small gRPC server whose deployment changes in time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from rich.console import Console

from expertmesh.cli import scale
from expertmesh.cli.errors import CliError
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc


class FakeCluster(rpc.ClusterServicer):
    """Has the members that it is told to have after `n_delays` more topologies."""

    def __init__(self) -> None:
        self.numbers = {"routers": 1, "experts": 2}
        self.generation = 1
        self.n_delays = 2
        self.wish: tuple[str, int] | None = None
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.begun = True

    def Scale(self, request, context):  # noqa: N802
        if self.refusal:
            context.abort(*self.refusal)
        self.wish = (request.what, request.replicas)
        return pb.ScaleResponse(replicas_before=self.numbers[request.what])

    def Rebalance(self, request, context):  # noqa: N802
        if self.refusal:
            context.abort(*self.refusal)
        return pb.RebalanceResponse(begun=self.begun, imbalance=1.5)

    def GetTopology(self, request, context):  # noqa: N802
        topology = pb.Topology(state="running")
        if self.wish and self.n_delays:
            self.n_delays -= 1
            topology.change.CopyFrom(
                pb.Change(generation=2, kind="scale", outcome="under way", seconds=0.1)
            )
        elif self.wish:
            what, n = self.wish
            self.generation += self.numbers[what] != n
            self.numbers[what] = n
        topology.generation = self.generation
        topology.routers.extend([pb.Member()] * self.numbers["routers"])
        topology.experts.extend([pb.Member()] * self.numbers["experts"])
        return topology


@pytest.fixture
def cluster() -> Iterator[tuple[str, FakeCluster]]:
    server = grpc.server(ThreadPoolExecutor(2))
    fake = FakeCluster()
    rpc.add_ClusterServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", fake
    server.stop(None)


def run(address: str, what: str, n: int, *, wait=True, timeout_s=10.0, as_json=False) -> str:
    console = Console(file=io.StringIO(), width=120)
    scale.run_scale(
        address, None, what, n, wait=wait, timeout_s=timeout_s, as_json=as_json, console=console
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run_rebalance(address: str, as_json: bool) -> str:
    console = Console(file=io.StringIO(), width=120)
    scale.run_rebalance(address, None, 10.0, as_json, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_scale_waits_until_they_serve(cluster):
    address, fake = cluster
    lines = run(address, "experts", 4).splitlines()
    assert fake.wish == ("experts", 4)
    assert lines[0] == "experts 2/4, generation 1 running, scale to generation 2, under way for 0.10 s"
    assert lines[-1].startswith("experts: 2 -> 4, done in ")
    assert lines[-1].endswith(" s (generation 2)")


def test_scale_without_waiting(cluster):
    address, fake = cluster
    fake.n_delays = 10**6
    assert run(address, "routers", 3, wait=False).startswith("routers: 1 -> 3, accepted")
    assert json.loads(run(address, "routers", 3, wait=False, as_json=True)) == {
        "what": "routers",
        "replicas_before": 1,
        "replicas": 3,
    }


def test_scale_json_has_generation_and_seconds(cluster):
    answer = json.loads(run(cluster[0], "experts", 1, as_json=True))
    assert (answer["replicas_before"], answer["replicas"], answer["generation"]) == (2, 1, 2)
    assert 0 < answer["seconds"] < 10


def test_a_wait_that_is_too_long_says_what_it_waited_for(cluster):
    address, fake = cluster
    fake.n_delays = 10**6
    with pytest.raises(CliError, match=r"not done within 0.5 s, .*: experts 2/4, .* under way") as caught:
        run(address, "experts", 4, timeout_s=0.5)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, 1),
        (grpc.StatusCode.UNAVAILABLE, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
    ],
)
def test_refusals_are_told(cluster, code, exit_code):
    address, fake = cluster
    fake.refusal = (code, "no room")
    for attempt in (lambda: run(address, "experts", 99), lambda: run_rebalance(address, False)):
        with pytest.raises(CliError, match=f"{code.name}: no room") as caught:
            attempt()
        assert caught.value.exit_code == exit_code


def test_rebalance_tells_whether_anything_is_moved(cluster):
    address, fake = cluster
    assert run_rebalance(address, False).startswith(
        "experts are being moved: the most loaded expert host has 1.50 times the mean"
    )
    assert json.loads(run_rebalance(address, True)) == {"begun": True, "imbalance": 1.5}
    fake.begun = False
    assert run_rebalance(address, False).startswith("nothing is moved")
