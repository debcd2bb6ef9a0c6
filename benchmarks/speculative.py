"""What drafts bring on the demo checkpoint: decoding without and with them, in turns, in one run.

    python benchmarks/speculative.py [--rounds 6] [--output benchmarks/results/speculative.json]
    python benchmarks/speculative.py --render    # writes the committed JSON into docs/benchmarks.md

Both deployments of a shape run side by side (one that has no requests is parked and takes no processor
time) and get the same waves in turns: prompts out of the held-out text, all requests of a wave at once,
greedy, without an end before the last token, over gRPC. A wave's figure is its tokens by its seconds from
the first submission to the last answer, prefill included; a ratio compares the two waves of one turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from live_bench.deployment import Deployment
from rich.console import Console
from rich.table import Table
from serving_bench.machine import describe_machine
from serving_bench.tables import begin_mark, render_into
from tokenizers import Tokenizer

from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "configs" / "demo"
RESULT = REPOSITORY / "benchmarks" / "results" / "speculative.json"
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"

SHAPES = {"fused": (1, 0), "1x2": (1, 2)}
BATCHES = (1, 8)
WAYS = {"off": ["speculative.method=off"], "mtp": ["speculative.method=mtp"]}
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 192
WARM_UP_WAVES = 2
CALL_S = 300.0


@dataclass(frozen=True)
class Wave:
    """Requests that were sent together."""

    seconds: float
    tokens: int
    accepted: int
    rejected: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Client:
    """Sends waves to one deployment."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)
        self._pool = ThreadPoolExecutor(max(BATCHES))

    def wave(self, prompts: list[list[int]]) -> Wave:
        started_s = time.perf_counter()
        usages = [answer.usage for answer in self._pool.map(self._generate, prompts)]
        return Wave(
            time.perf_counter() - started_s,
            sum(usage.completion_tokens for usage in usages),
            sum(usage.accepted_prediction_tokens for usage in usages),
            sum(usage.rejected_prediction_tokens for usage in usages),
        )

    def close(self) -> None:
        self._pool.shutdown()
        self._channel.close()

    def _generate(self, prompt: list[int]) -> pb.GenerateResponse:
        params = pb.SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
        request = pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=prompt), params=params)
        return self._inference.Generate(request, timeout=CALL_S)


def measure(rounds: int, shapes: list[str]) -> list[dict[str, Any]]:
    """A row for each shape and number of requests."""
    text = (DEMO / "heldout.txt").read_text()
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids
    rows = []
    with tempfile.TemporaryDirectory() as logs:
        for shape in shapes:
            deployments = [
                Deployment(*SHAPES[shape], settings, Path(logs) / f"{shape}-{way}.log")
                for way, settings in WAYS.items()
            ]
            try:
                clients = [Client(deployment.grpc_address) for deployment in deployments]
                rows += [_row(shape, n, rounds, clients, ids) for n in BATCHES]
                for client in clients:
                    client.close()
            finally:
                for deployment in deployments:
                    deployment.stop()
    return rows


def _row(shape: str, n_requests: int, rounds: int, clients: list[Client], ids: list[int]) -> dict[str, Any]:
    waves: list[tuple[Wave, Wave]] = []
    for turn in range(rounds + WARM_UP_WAVES):
        starts = [(turn * n_requests + i) * 389 % (len(ids) - PROMPT_TOKENS) for i in range(n_requests)]
        prompts = [ids[start : start + PROMPT_TOKENS] for start in starts]
        # Who is first changes with the turn.
        order = (0, 1) if turn % 2 else (1, 0)
        pair = {which: clients[which].wave(prompts) for which in order}
        if turn >= WARM_UP_WAVES:
            waves.append((pair[0], pair[1]))
            figures = ", ".join(f"{pair[which].tokens_per_s:.0f}" for which in (0, 1))
            print(f"{shape}, {n_requests} at once: {figures} tokens/s", file=sys.stderr)
    ratios = sorted(mtp.tokens_per_s / off.tokens_per_s for off, mtp in waves)
    accepted, rejected = (sum(getattr(mtp, what) for _, mtp in waves) for what in ("accepted", "rejected"))
    return {
        "shape": shape,
        "requests": n_requests,
        "off_tokens_per_s": round(statistics.median(off.tokens_per_s for off, _ in waves), 1),
        "mtp_tokens_per_s": round(statistics.median(mtp.tokens_per_s for _, mtp in waves), 1),
        "speed_up": round(statistics.median(ratios), 3),
        "speed_up_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "accepted_share": round(accepted / max(accepted + rejected, 1), 4),
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The header and a line for each case."""
    lines = [["shape", "requests at once", "off, tokens/s", "mtp, tokens/s", "speed-up", "accepted"]]
    for row in rows:
        least, most = row["speed_up_range"]
        lines.append(
            [
                row["shape"],
                str(row["requests"]),
                f"{row['off_tokens_per_s']:.0f}",
                f"{row['mtp_tokens_per_s']:.0f}",
                f"{row['speed_up']:.2f} ({least:.2f} to {most:.2f})",
                f"{100 * row['accepted_share']:.1f} %",
            ]
        )
    return lines


def markdown(result: dict[str, Any]) -> str:
    """The figures' part of docs/benchmarks.md."""
    lines = table(result["rows"])
    lines.insert(1, ["---", *("---:" for _ in lines[0][1:])])
    machine = result["machine"]
    note = (
        f"Medians of {result['rounds']} turns, the speed-up that of the waves of one turn (least to most). "
        f"{machine['cpu_model']}, {len(machine['cores_used'])} cores, load of the machine before "
        f"{result['load_before']:.1f}, commit {machine['commit']}."
    )
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each case")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--render", action="store_true", help="only write the result into the document")
    options = parser.parse_args()
    if not options.render:
        load_before = os.getloadavg()[0]
        rows = measure(options.rounds, options.shapes)
        shown = Table(*table(rows)[0])
        for line in table(rows)[1:]:
            shown.add_row(*line)
        Console().print(shown)
        machine = describe_machine(os.sched_getaffinity(0), REPOSITORY)
        result = {
            "machine": asdict(machine),
            "load_before": round(load_before, 2),
            "rounds": options.rounds,
            "rows": rows,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
        return
    figures = markdown(json.loads(options.output.read_text()))
    DOCUMENT.write_text(render_into(DOCUMENT.read_text(), figures, begin_mark(Path(__file__).name)))


if __name__ == "__main__":
    main()
