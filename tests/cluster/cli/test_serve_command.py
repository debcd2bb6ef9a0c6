"""The life of `expertmesh serve`: what signals do to it, and what it leaves behind (nothing)."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

STOP_S = 60.0
ADDRESS = r"gRPC\S*\s+(127\.0\.0\.1:\d+)"


def stream(address: str, max_tokens: int, started: threading.Semaphore) -> tuple[int, str]:
    """(tokens, finish reason) of one generation; releases `started` at its first token."""
    request = pb.GenerateRequest(
        prompt="The SELECT statement",
        params=pb.SamplingParams(max_tokens=max_tokens, temperature=0.8, ignore_eos=True),
    )
    n_tokens, reason = 0, ""
    with grpc.insecure_channel(address) as channel:
        for chunk in rpc.InferenceStub(channel).GenerateStream(request, timeout=120):
            if n_tokens == 0:
                started.release()
            n_tokens += len(chunk.delta.token_ids)
            reason = chunk.delta.finish_reason or reason
    return n_tokens, reason


def assert_gone(command) -> None:
    assert command.living() == []


def test_a_second_signal_stops_at_once(serve):
    serving = serve("--experts", "0")
    address = serving.wait_for(ADDRESS).group(1)
    serving.wait_for("Serving")
    started = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        long_stream = pool.submit(stream, address, 1900, started)
        assert started.acquire(timeout=60)
        serving.signal(signal.SIGTERM)
        serving.wait_for("draining: [1-9]")
        assert not long_stream.done(), "the drain waits for it"
        serving.signal(signal.SIGINT)
        stopped_s = time.monotonic()
        assert serving.wait(20) == 130, serving.output
        assert time.monotonic() - stopped_s < 20
        with pytest.raises(grpc.RpcError):
            long_stream.result()
    assert_gone(serving)


@pytest.mark.parametrize("moment", ["starting a local Ray cluster", "Ray dashboard", r"gateway \d/1"])
def test_sigterm_while_starting_leaves_nothing_behind(serve, moment):
    serving = serve()
    serving.wait_for(moment)
    serving.signal(signal.SIGTERM)
    assert serving.wait(STOP_S) == 0, serving.output
    assert "Traceback" not in serving.output
    assert_gone(serving)
