"""`generate` and `status` against a small gRPC server that answers as a deployment does."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from rich.console import Console

from expertmesh.cli import generate, status
from expertmesh.cli.errors import CliError
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

TOPOLOGY = pb.Topology(
    generation=3,
    state="running",
    routers=[pb.Member(rank=0, node="n0", pid=10, incarnation="a", device="cpu", tokens=40)],
    experts=[
        pb.Member(rank=1, node="n0", pid=11, incarnation="b", device="cpu", tokens=300),
        pb.Member(rank=2, node="n0", pid=12, incarnation="c", device="cpu", tokens=100),
    ],
)
MODEL = pb.Model(
    name="demo", architecture="DeepseekV3ForCausalLM", max_context_tokens=64, has_tokenizer=True
)


class FakeDeployment(rpc.InferenceServicer, rpc.ClusterServicer):
    """Says "ab" token by token to a text prompt, ids alone to ids, and refuses the prompt "bad"."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []

    def GenerateStream(self, request, context):  # noqa: N802
        self.requests.append(request)
        if request.prompt == "bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt: is bad")
        text = bool(request.prompt)
        for index, token in enumerate("ab"):
            chunk = pb.GenerateChunk(request_id="r1", model="demo")
            chunk.delta.CopyFrom(pb.Completion(text=token if text else "", token_ids=[ord(token)]))
            if index == 0:
                chunk.prompt_token_ids.extend([5, 6, 7])
            if index == 1 and request.prompt != "cut":
                chunk.delta.finish_reason = "length"
            yield chunk

    def ListModels(self, request, context):  # noqa: N802
        return pb.ListModelsResponse(models=[MODEL])

    def GetTopology(self, request, context):  # noqa: N802
        return TOPOLOGY


@pytest.fixture
def deployment() -> Iterator[tuple[str, FakeDeployment]]:
    server = grpc.server(ThreadPoolExecutor(2))
    fake = FakeDeployment()
    rpc.add_InferenceServicer_to_server(fake, server)
    rpc.add_ClusterServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", fake
    server.stop(None)


def run_generate(
    address: str, prompt: str | None, ids: str | None, as_json: bool, **params
) -> tuple[str, str]:
    request = generate.build_request(prompt, ids, "demo", generate.sampling_params(**params))
    out, err = io.StringIO(), io.StringIO()
    generate.run(address, None, request, timeout_s=10, as_json=as_json, out=out, err=err)
    return out.getvalue(), err.getvalue()


def test_generate_streams_text_and_ends_with_the_rate(deployment):
    out, err = run_generate(deployment[0], "hello", None, False, max_tokens=2)
    assert out == "ab\n"
    assert err.startswith("2 tokens in ")
    assert "tokens/s" in err
    assert "ended by length" in err


def test_generate_prints_token_ids_where_there_is_no_text(deployment):
    out, _ = run_generate(deployment[0], None, "1, 2 3", False)
    assert out.split() == ["97", "98"]
    assert list(deployment[1].requests[0].prompt_token_ids.ids) == [1, 2, 3]


def test_generate_json_is_one_object(deployment):
    out, err = run_generate(deployment[0], "hello", None, True)
    answer = json.loads(out)
    assert (answer["text"], answer["token_ids"], answer["finish_reason"]) == ("ab", [97, 98], "length")
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (3, 2)
    assert answer["seconds"] > 0
    assert err == ""


def test_only_given_parameters_are_sent(deployment):
    run_generate(
        deployment[0], "hello", None, True, temperature=0.0, seed=None, stop=["x", "y"], top_k=None
    )
    params = deployment[1].requests[0].params
    assert params.HasField("temperature")
    assert params.temperature == 0.0
    assert not params.HasField("seed")
    assert not params.HasField("max_tokens")
    assert list(params.stop) == ["x", "y"]


def test_a_value_that_does_not_fit_is_named():
    with pytest.raises(CliError, match="--max-tokens"):
        generate.sampling_params(max_tokens=2**40)


def test_a_refusal_is_the_users_fault(deployment):
    with pytest.raises(CliError, match="INVALID_ARGUMENT: prompt: is bad") as caught:
        run_generate(deployment[0], "bad", None, False)
    assert caught.value.exit_code == 2


def test_a_stream_without_an_end_is_an_error(deployment):
    with pytest.raises(CliError, match="ended before the generation did"):
        run_generate(deployment[0], "cut", None, False)


def run_status(address: str, as_json: bool) -> str:
    console = Console(file=io.StringIO(), width=120)
    status.run(address, None, timeout_s=10, as_json=as_json, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_status_shows_members_and_shares(deployment):
    shown = run_status(deployment[0], False)
    assert "generation 3: running" in shown
    assert "model demo: DeepseekV3ForCausalLM, up to 64 tokens" in shown
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["0"], ["1"], ["2"])]
    assert [row[1] for row in rows] == ["router", "experts", "experts"]
    assert [" ".join(row[6:]) for row in rows] == ["100.0 %", "75.0 %", "25.0 %"]


def test_status_json_has_numbers(deployment):
    answer = json.loads(run_status(deployment[0], True))
    assert answer["topology"]["generation"] == 3
    assert answer["topology"]["experts"][1] == {
        "rank": 2, "node": "n0", "pid": 12, "incarnation": "c", "device": "cpu", "tokens": 100,
        "cache_blocks": 0, "cache_blocks_used": 0, "draft_tokens": 0, "accepted_tokens": 0,
    }  # fmt: skip
    assert (answer["topology"]["last_change"], answer["topology"]["imbalance"]) == (None, 0.0)
    assert answer["models"] == [
        {
            "name": "demo",
            "architecture": "DeepseekV3ForCausalLM",
            "max_context_tokens": 64,
            "has_tokenizer": True,
        }
    ]
