"""What watching costs: the decode step and the throughput with metrics and traces, and without.

    python benchmarks/observability.py                # measures, writes the JSON
    python benchmarks/observability.py --render       # writes its table into docs/benchmarks.md

One Ray cluster has three deployments of the demo: without metrics, with metrics, and with metrics and
every request traced (to a receiver that throws spans away). The same load goes to them in turns, round by
round, in an order that changes; a round's figure is compared with that of the same round without. The other
deployments are parked meanwhile and use no processor time.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import grpc
import ray
import typer
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from ray import serve
from ray.serve.config import gRPCOptions
from serving_bench.expertmesh_engine import parse_step_totals
from serving_bench.machine import describe_machine
from serving_bench.processes import wait_until
from serving_bench.tables import begin_mark, render_into

from expertmesh.actors.app import build_app
from expertmesh.actors.coordinator_access import stop_coordinator
from expertmesh.actors.gateway.serve_proxy import SERVICER_FUNCTIONS
from expertmesh.cli.ports import free_ports
from expertmesh.configs.load import load_config
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "observability.json"
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
MARK = begin_mark("observability.py")
START_S, CALL_S, REPORT_S = 180.0, 120.0, 2.0
PLAIN, METRICS, TRACES = "nothing", "metrics", "metrics and traces"


class _Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        return trace_service_pb2.ExportTraceServiceResponse()


class Watched:
    """One of the deployments."""

    def __init__(self, name: str, http_url: str, channel: grpc.Channel) -> None:
        self._url = f"{http_url}/{name}"
        self._metadata = (("application", name),)
        self._stub = rpc.InferenceStub(channel)

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self._url}/health", timeout=CALL_S) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def round(self, streams: int, tokens: int, pool: ThreadPoolExecutor) -> dict[str, float]:
        """Runs so many streams of so many tokens; milliseconds of a decode step, and tokens a second."""
        before, begun_s = self._totals(), time.monotonic()
        list(pool.map(lambda i: self._stream(i, tokens), range(streams)))
        seconds = time.monotonic() - begun_s
        time.sleep(REPORT_S)  # routers report once a second
        after = self._totals()
        steps = after.steps - before.steps
        step_ms = (sum(after.parts_ms.values()) - sum(before.parts_ms.values())) / steps
        return {"step_ms": step_ms, "tokens_per_s": streams * tokens / seconds}

    def _stream(self, index: int, tokens: int) -> None:
        prompt = pb.TokenIds(ids=[5 + (index * 7 + i) % 200 for i in range(16)])
        params = pb.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        request = pb.GenerateRequest(prompt_token_ids=prompt, params=params)
        for _ in self._stub.GenerateStream(request, timeout=CALL_S, metadata=self._metadata):
            pass

    def _totals(self) -> Any:
        with urllib.request.urlopen(f"{self._url}/v1/topology", timeout=CALL_S) as response:
            totals = parse_step_totals(json.loads(response.read()))
        assert totals is not None
        return totals


@contextmanager
def deployments(experts: int) -> Iterator[dict[str, Watched]]:
    """The three, side by side."""
    http_port, grpc_port = free_ports(2)
    # Before anything of gRPC: its threads would make Ray's forks unsafe.
    ray.init(address="local", num_cpus=64, log_to_driver=False, _system_config={"worker_niceness": 0})
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Receiver(), server)
    collector = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    overrides = {
        PLAIN: ["metrics.enabled=false"],
        METRICS: [],
        TRACES: [f"tracing.otlp_endpoint={collector}"],
    }
    names = {kind: f"watch-{i}" for i, kind in enumerate(overrides)}
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": http_port},
            grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=list(SERVICER_FUNCTIONS)),
            logging_config={"log_level": "WARNING"},
        )
        targets = []
        for kind, name in names.items():
            settings = [
                f"name={name}",
                f"experts.replicas={experts}",
                "router.threads=1",
                "experts.threads=1",
            ]
            config = load_config(REPOSITORY / "configs" / "demo.yaml", [*settings, *overrides[kind]])
            targets.append(
                serve.RunTarget(
                    target=build_app(config),
                    name=name,
                    route_prefix=f"/{name}",
                    external_scaler_enabled=True,
                )
            )
        serve.run_many(targets)
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            url = f"http://127.0.0.1:{http_port}"
            found = {kind: Watched(name, url, channel) for kind, name in names.items()}
            if not wait_until(lambda: all(one.healthy for one in found.values()), START_S):
                raise TimeoutError(f"the deployments do not answer within {START_S:g} s")
            yield found
        for name in names.values():
            serve.delete(name)
            stop_coordinator(name)
    finally:
        serve.shutdown()
        ray.shutdown()
        server.stop(None)


def measure(rounds: int, streams: int, tokens: int, experts: int) -> dict[str, Any]:
    """All rounds; of each kind the figures by round, in the rounds' order."""
    figures: dict[str, list[dict[str, float]]] = {PLAIN: [], METRICS: [], TRACES: []}
    kinds = list(figures)
    with deployments(experts) as watched, ThreadPoolExecutor(streams) as pool:
        for one in watched.values():
            one.round(streams, tokens // 4, pool)
        for number in range(rounds):
            shift = number % len(kinds)
            for kind in kinds[shift:] + kinds[:shift]:
                figures[kind].append(watched[kind].round(streams, tokens, pool))
            print(f"round {number + 1} of {rounds}", flush=True)
    return {
        "machine": asdict(describe_machine(os.sched_getaffinity(0), REPOSITORY)),
        "rounds": rounds,
        "streams": streams,
        "tokens": tokens,
        "experts": experts,
        "figures": figures,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table, from the JSON."""
    figures = result["figures"]
    lines = [
        "| with | decode step | ratio of the step | tokens/s | ratio of tokens/s |",
        "|---|---|---|---|---|",
    ]
    for kind, rounds in figures.items():
        step_ms = statistics.median(r["step_ms"] for r in rounds)
        rate = statistics.median(r["tokens_per_s"] for r in rounds)
        cells = [kind, f"{step_ms:.2f} ms", _ratio(figures, kind, "step_ms")]
        lines.append(f"| {' | '.join([*cells, f'{rate:.0f}', _ratio(figures, kind, 'tokens_per_s')])} |")
    n_hosts = result["experts"]
    hosts = f"{n_hosts} expert host{'s' * (n_hosts != 1)}" if n_hosts else "no expert hosts"
    setting = (
        f"The demo on 1 router and {hosts}, {result['streams']} streams of {result['tokens']} tokens, "
        f"{result['rounds']} rounds of all three in turns. Ratios are medians over the rounds, against "
        "the same round with nothing; in brackets their middle half."
    )
    return f"{setting}\n\n" + "\n".join(lines)


def _ratio(figures: dict[str, list[dict[str, float]]], kind: str, name: str) -> str:
    if kind == PLAIN:
        return ""
    ratios = [a[name] / b[name] for a, b in zip(figures[kind], figures[PLAIN], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main(
    rounds: Annotated[int, typer.Option(help="Of all three in turns.")] = 12,
    streams: Annotated[int, typer.Option(help="At once.")] = 8,
    tokens: Annotated[int, typer.Option(help="Of each stream.")] = 256,
    experts: Annotated[int, typer.Option(help="Expert hosts.")] = 1,
    out: Annotated[Path, typer.Option(help="The JSON.")] = RESULT,
    render: Annotated[bool, typer.Option("--render", help="Only write the table.")] = False,
) -> None:
    """Measures, or renders what was measured."""
    if not render:
        result = measure(rounds, streams, tokens, experts)
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(markdown(result))
        return
    DOCUMENT.write_text(render_into(DOCUMENT.read_text(), markdown(json.loads(RESULT.read_text())), MARK))


if __name__ == "__main__":
    typer.run(main)
