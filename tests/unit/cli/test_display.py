"""Lines for the terminal, and GPU shares."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from expertmesh.cli import display
from expertmesh.cli.errors import UsageError
from expertmesh.cli.gpus import with_gpu_shares
from expertmesh.configs.load import config_from_dict
from expertmesh.proto.v1 import inference_pb2 as pb


def config(**sections):
    return config_from_dict({"model": {"path": "weights"}, **sections}, Path("/models"))


def test_host_shares_count_from_the_first_topology_and_new_hosts_from_zero():
    before = [pb.Member(rank=1, incarnation="a", tokens=100)]
    after = [
        pb.Member(rank=1, incarnation="a", tokens=160),
        pb.Member(rank=2, incarnation="b", tokens=20),
    ]
    assert display.host_shares(before, after) == [(1, 60, 0.75), (2, 20, 0.25)]
    assert display.host_shares(after, after) == [(1, 0, 0.0), (2, 0, 0.0)]


def test_the_ready_text_names_the_endpoints_and_survives_brackets():
    console = Console(file=io.StringIO(), width=60)
    deployment = config(http={"host": "0.0.0.0", "port": 81}, grpc={"port": 82}, name="a")
    display.print_ready(console, deployment, "http://127.0.0.1:8265")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "127.0.0.1:82\n" in text
    assert "http://127.0.0.1:81/v1\n" in text
    assert "http://127.0.0.1:8265\n" in text
    assert "choices[0].text" in text, "an example can be copied as it is"
    assert """-d '{"model": "weights", "prompt": "The SELECT statement", "max_tokens": 32}'""" in text


def test_a_start_says_what_it_waits_for():
    line = display.waiting_line(pb.Topology(state="waiting", reason="no router"), {"router": (0, 1)})
    assert line.endswith("(router 0/1, generation waiting: no router)")
    loading = pb.Topology(state="forming", loaded_bytes=12_000_000, total_bytes=48_000_000)
    line = display.waiting_line(loading, {"router": (1, 1)})
    assert line.endswith("(router 1/1, weights 12 of 48 MB, generation forming)")


def test_changes_and_imbalance_are_told():
    assert display.change_lines(pb.Topology(), 1000.0) == []
    topology = pb.Topology(
        last_change=pb.Change(
            generation=3, kind="scale", outcome="live", seconds=0.42, unix_s=700.0, reason="host x joins"
        ),
        change=pb.Change(generation=4, kind="rebalance", outcome="under way", seconds=1.5),
        imbalance=1.25,
    )
    assert display.change_lines(topology, 1000.0) == [
        "last change (5 min ago): scale to generation 3, live after 0.42 s: host x joins",
        "change: rebalance to generation 4, under way for 1.50 s",
        "load: the most loaded expert host has 1.25 times the mean",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2 h")]
)
def test_ages(seconds, text):
    assert display.age_text(seconds) == text


def test_scaling_says_what_it_waits_for():
    topology = pb.Topology(
        generation=3, state="running", experts=[pb.Member(), pb.Member()], reason="waits for room"
    )
    line = display.scaling_line(topology, "experts", 4)
    assert line == "experts 2/4, generation 3 running, waits for room"
    topology.last_change.CopyFrom(
        pb.Change(generation=4, kind="scale", outcome="rolled back", seconds=2, reason="no such file")
    )
    assert display.scaling_line(topology, "routers", 1).endswith(
        "last try: scale to generation 4, rolled back after 2.00 s: no such file"
    )


def test_shapes_are_counted():
    assert display.shape_line(config()) == "1 gateway, 1 router, 2 expert hosts"
    fused = config(router={"replicas": 2}, experts={"replicas": 0})
    assert display.shape_line(fused) == "1 gateway, 2 routers, fused (the experts live in the routers)"


@pytest.mark.parametrize(
    ("n_gpus", "routers", "hosts", "share"),
    [(1, 1, 0, 1.0), (1, 1, 2, 0.333), (8, 1, 2, 1.0), (2, 2, 2, 0.5), (2, 1, 2, 0.5)],
)
def test_gpus_are_shared_evenly(n_gpus, routers, hosts, share):
    deployment = config(device="cuda", router={"replicas": routers}, experts={"replicas": hosts})
    shared = with_gpu_shares(deployment, n_gpus)
    assert (shared.router.gpus, shared.experts.gpus) == (share, share)


def test_gpus_that_the_file_gives_are_kept():
    given = config(device="cuda", router={"gpus": 0.2})
    assert with_gpu_shares(given, 1) == given
    assert with_gpu_shares(config(), 4).router.gpus == 0, "the processor needs none"


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(UsageError, match="no GPU"):
        with_gpu_shares(config(device="cuda"), 0)
