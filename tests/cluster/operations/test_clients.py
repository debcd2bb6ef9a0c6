"""The clients of examples/ and `expertmesh chat` against a running deployment that asks for API keys."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serve_cluster import SETTLE_S, Deployment

if TYPE_CHECKING:
    from conftest import Operated

pytestmark = pytest.mark.xdist_group("operations")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
CHAT = (sys.executable, "-c", "from expertmesh.cli.main import main; main()", "chat")


def run(
    command: tuple[str, ...], deployment: Deployment, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    here = {
        "EXPERTMESH_URL": deployment.http_url,
        "EXPERTMESH_ADDRESS": deployment.grpc_address,
        "EXPERTMESH_API_KEY": deployment.key,
    }
    return subprocess.run(
        command, env=os.environ | here, input=text, capture_output=True, text=True, timeout=SETTLE_S
    )


def output(command: tuple[str, ...], deployment: Deployment) -> str:
    done = run(command, deployment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_grpc_from_python(operated: Operated) -> None:
    out = output((sys.executable, str(EXAMPLES / "grpc_client.py")), operated.user)
    assert out.startswith("expertmesh-demo: DeepseekV3ForCausalLM, up to ")
    assert re.search(r"\n\(\d+ tokens, ended by (length|stop)\)\n", out)
    assert len(re.findall(r"^token \d+: logprob -?\d+\.\d\d \(most likely: ", out, re.MULTILINE)) == 4


def test_openai_client(operated: Operated) -> None:
    out = output((sys.executable, str(EXAMPLES / "openai_client.py")), operated.user)
    assert re.fullmatch(r"expertmesh-demo\n.*\S.*\n\(\d+ \+ \d+ tokens\)\n", out, re.DOTALL), out


def test_curl(operated: Operated) -> None:
    health, completion, *events = output((str(EXAMPLES / "curl.sh"),), operated.user).split("\n")
    assert json.loads(health)["state"] == "running"
    assert json.loads(completion)["choices"][0]["text"]
    assert [event for event in events if event][-1] == "data: [DONE]"
    refused = run((str(EXAMPLES / "curl.sh"),), operated.anonymous)
    assert refused.returncode != 0
    assert "401" in refused.stderr


def test_grpcurls_requests_are_what_reflection_tells(operated: Operated) -> None:
    """grpcurl may not be here: what it would send is made from the words of the server, as it does."""
    script = (EXAMPLES / "grpcurl.sh").read_text().replace("\\\n", "")
    calls = [shlex.split(line)[1:] for line in script.splitlines() if line.startswith("grpcurl ")]
    with grpc.insecure_channel(operated.user.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        [listing, generate, topology] = calls
        assert listing == ["-plaintext", "$address", "list"]
        assert {"expertmesh.v1.Inference", "expertmesh.v1.Cluster"} <= set(database.get_services())

        chunks = [
            json_format.MessageToDict(chunk) for chunk in _call(channel, pool, operated.user, generate)
        ]
        assert 0 < sum(len(chunk["delta"].get("tokenIds", ())) for chunk in chunks) <= 32
        assert chunks[-1]["delta"]["finishReason"] in ("length", "stop")
        [shown] = [
            json_format.MessageToDict(answer) for answer in _call(channel, pool, operated.user, topology)
        ]
        assert len(shown["experts"]) == 2


def _call(
    channel: grpc.Channel, pool: DescriptorPool, deployment: Deployment, words: list[str]
) -> list[Any]:
    service_name, _, method_name = words[-1].partition("/")
    method = pool.FindServiceByName(service_name).methods_by_name[method_name]
    body = words[words.index("-d") + 1] if "-d" in words else "{}"
    request = json_format.Parse(body, GetMessageClass(method.input_type)())
    assert words[words.index("-H") + 1] == "$auth"
    stub = (channel.unary_stream if method.server_streaming else channel.unary_unary)(
        f"/{words[-1]}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    answer = stub(request, timeout=SETTLE_S, metadata=[("authorization", f"Bearer {deployment.key}")])
    return list(answer) if method.server_streaming else [answer]


def test_chat_in_a_pipe(operated: Operated) -> None:
    deployment = operated.user
    settings = ("--url", deployment.http_url, "--max-tokens", "12", "--temperature", "0", "--seed", "1")
    asked = run((*CHAT, *settings, "--system", "You explain databases."), deployment, "What is an index?\n")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert re.match(r"\d+ tokens in [\d.]+ s, [\d.]+ tokens/s \(prompt: \d+ tokens", asked.stderr)
    again = json.loads(output((*CHAT, *settings, "--json", "--message", "What is an index?"), deployment))
    assert again["content"]
    assert 0 < again["completion_tokens"] <= 12
    refused = run((*CHAT, *settings, "--message", "x"), operated.anonymous)
    assert refused.returncode == 1
    assert re.match(r"expertmesh: http://\S+: 401: .*key", refused.stderr)
