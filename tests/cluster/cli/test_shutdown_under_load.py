"""`expertmesh serve` is told to stop while it works, and is started again afterwards."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import openai
import pytest

from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

STOP_S = 60.0
CALL_S = 120.0
GRPC = r"gRPC\S*\s+(127\.0\.0\.1:\d+)"
HTTP = r"HTTP\S*\s+(http://127\.0\.0\.1:\d+/v1)"
PROMPT = "The SELECT statement"
N_STREAMS = 8
LONG, SHORT = 200, 5
CTRL_C = b"\x03"


class Clients:
    """Both faces of the command's deployment."""

    def __init__(self, serving) -> None:
        self.grpc_address = serving.wait_for(GRPC).group(1)
        http_url = serving.wait_for(HTTP).group(1)
        self.ports = [
            address.rpartition(":")[2] for address in (self.grpc_address, http_url[: -len("/v1")])
        ]
        self.openai = openai.OpenAI(base_url=http_url, api_key="-", max_retries=0, timeout=CALL_S)

    def over_grpc(self, n_tokens: int, begun: threading.Semaphore | None = None) -> tuple[int, str]:
        """(tokens, finish reason) of a stream; releases `begun` at its first token."""
        params = pb.SamplingParams(max_tokens=n_tokens, temperature=0.8, ignore_eos=True)
        n_seen, reason = 0, ""
        with grpc.insecure_channel(self.grpc_address) as channel:
            request = pb.GenerateRequest(prompt=PROMPT, params=params)
            for chunk in rpc.InferenceStub(channel).GenerateStream(request, timeout=CALL_S):
                if n_seen == 0 and begun is not None:
                    begun.release()
                n_seen += len(chunk.delta.token_ids)
                reason = chunk.delta.finish_reason or reason
        return n_seen, reason

    def over_http(self, n_tokens: int, begun: threading.Semaphore | None = None) -> tuple[int, str]:
        """The same over HTTP."""
        n_seen, reason = 0, ""
        with self.openai.completions.create(
            model="",
            prompt=PROMPT,
            max_tokens=n_tokens,
            temperature=0.8,
            stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        ) as stream:
            for chunk in stream:
                if n_seen == 0 and begun is not None:
                    begun.release()
                n_seen += len(chunk.choices[0].token_ids)
                reason = chunk.choices[0].finish_reason or reason
        return n_seen, reason

    def refused(self) -> bool:
        """Whether new calls are turned away on both faces; those that are not have to succeed."""
        outcomes: list[object] = []
        for call in (self.over_grpc, self.over_http):
            try:
                outcomes.append(call(SHORT))
            except grpc.RpcError as error:
                outcomes.append(error.code())
            except openai.APIStatusError as error:
                outcomes.append(error.status_code)
        assert {*outcomes} <= {(SHORT, "length"), grpc.StatusCode.UNAVAILABLE, 503}
        return (SHORT, "length") not in outcomes


def test_what_runs_is_finished_what_comes_is_refused_and_a_second_start_works(command, repository):
    """SIGTERM to the first, Ctrl-C in a terminal to the second."""

    def start(grpc_port: str, http_port: str, terminal: bool = False):
        ports = ("--grpc-port", grpc_port, "--http-port", http_port)
        return command("serve", str(repository / "configs" / "demo.yaml"), *ports, terminal=terminal)

    serving = start("0", "0")
    clients = Clients(serving)
    serving.wait_for("Serving")
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(N_STREAMS) as pool:
        faces = (clients.over_grpc, clients.over_http)
        streams = [pool.submit(faces[i % 2], LONG, begun) for i in range(N_STREAMS)]
        for _ in streams:
            assert begun.acquire(timeout=CALL_S)
        serving.signal(signal.SIGTERM)
        stopped_s = time.monotonic()
        while not clients.refused():
            # The signal takes a moment to reach the gateway.
            assert not all(stream.done() for stream in streams)
        assert not all(stream.done() for stream in streams)
        assert [stream.result() for stream in streams] == [(LONG, "length")] * N_STREAMS
    assert serving.wait(STOP_S) == 0, serving.output
    assert time.monotonic() - stopped_s < STOP_S
    assert "cut off" not in serving.output
    assert "Traceback" not in serving.output
    assert serving.living() == []

    again = start(*clients.ports, terminal=True)
    clients = Clients(again)
    again.wait_for("Serving")
    assert clients.over_http(SHORT) == (SHORT, "length")
    with ThreadPoolExecutor(N_STREAMS) as pool:
        streams = [pool.submit(clients.over_grpc, LONG, begun) for _ in range(N_STREAMS)]
        for _ in streams:
            assert begun.acquire(timeout=CALL_S)
        # The terminal sends SIGINT to the whole process group, Ray's own processes included.
        again.type(CTRL_C)
        assert [stream.result() for stream in streams] == [(LONG, "length")] * N_STREAMS
    assert again.wait(STOP_S) == 0, again.output
    assert "draining" in again.output
    assert "cut off" not in again.output
    assert "Traceback" not in again.output
    assert again.living() == []


@pytest.mark.parametrize("left_bytes", [0, 4, 300_000])
def test_a_truncated_checkpoint_is_one_line_before_anything_starts(
    command, repository, demo_checkpoint: Path, tmp_path: Path, left_bytes: int
):
    folder = tmp_path / "broken"
    shutil.copytree(demo_checkpoint, folder)
    [weights] = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:left_bytes])
    refused = command("serve", str(repository / "configs" / "demo.yaml"), "--model", str(folder))
    assert refused.wait(STOP_S) == 2
    [line] = refused.output.splitlines()
    assert line.startswith("expertmesh: ")
    assert str(weights) in line
    assert refused.living() == []
