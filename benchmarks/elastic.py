"""Live change under steady load: what the clients of a deployment see while it is scaled and rebalanced.

    python benchmarks/elastic.py [--runs 3] [--output benchmarks/results/elastic.json]

The demo checkpoint in deterministic mode. First the undisturbed streams, which give every job's tokens and
the usual gaps; then, with the same load, experts 2 -> 4 -> 1 -> 3, routers 1 -> 2 -> 1 and a rebalance. At
last prompts of one kind: the most loaded host's rows over the mean, by the routers' counts, before and
after a rebalance. Exit code 1 when a request failed or a stream differs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from live_bench.deployment import Deployment, now_s
from live_bench.load import Job, SteadyLoad, Stream
from live_bench.picture import draw
from live_bench.report import Event, Row, percentile, row, undisturbed_tokens
from rich.console import Console
from rich.table import Table
from serving_bench.machine import describe_machine

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "elastic.json"
PROMPTS = (
    "The PRIMARY KEY of a table",
    "SELECT name FROM",
    "def main():",
    "A database index is",
    "The water cycle",
    "CREATE TABLE users (",
    "import os",
    "In the beginning",
)
SKEWED_IDS = (3663, 1070) * 40
"""A prompt whose tokens choose few experts."""
REDUNDANT_SLOTS = 4
"""A quarter of the demo checkpoint's experts."""
WINDOW_S = 10.0
CHANGE_S = 90.0
EVENTS = (
    "experts 2 -> 4",
    "experts 4 -> 1",
    "experts 1 -> 3",
    "routers 1 -> 2",
    "routers 2 -> 1",
    "rebalance",
)

console = Console(stderr=True, highlight=False, soft_wrap=True)


def jobs() -> list[Job]:
    """Greedy and sampled, of unequal lengths."""
    return [
        Job(prompt, max_tokens=24 + 8 * (i % 5), temperature=0.8 * (i % 2), seed=i)
        for i, prompt in enumerate(PROMPTS * 2)
    ]


def measure(
    concurrency: int, undisturbed_s: float, settle_s: float, overrides: Sequence[str], log_file: Path
) -> tuple[list[Row], list[Stream], list[Event], dict[str, float], dict[str, float]]:
    """One run: rows, streams and events of the disturbed phase, undisturbed gaps, imbalances."""
    settings = [
        "engine.deterministic=true",
        f"experts.redundant_slots={REDUNDANT_SLOTS}",
        f"balance.window_s={WINDOW_S:g}",
        *overrides,
    ]
    deployment = Deployment(1, 2, settings, log_file)
    try:
        still = SteadyLoad(deployment.grpc_address, jobs(), concurrency)
        still.start()
        time.sleep(undisturbed_s)
        undisturbed = still.stop()
        expected = undisturbed_tokens(undisturbed)
        gaps = [gap for s in undisturbed for _, gap in s.gaps()]
        usual = {
            "p50_ms": 1000 * percentile(gaps, 0.5),
            "p99_ms": 1000 * percentile(gaps, 0.99),
            "max_ms": 1000 * max(gaps),
        }
        load = SteadyLoad(deployment.grpc_address, jobs(), concurrency)
        load.start()
        events = [_event(deployment, name, settle_s) for name in EVENTS]
        streams = load.stop()
        imbalance = _skew(deployment, concurrency)
    finally:
        deployment.stop()
    rows = [row(event, streams, expected, usual["p99_ms"] / 1000) for event in events]
    whole = Event("all", events[0].began_s, events[0].began_s, events[-1].ended_s)
    rows.append(row(whole, streams, expected, usual["p99_ms"] / 1000))
    return rows, streams, events, usual, imbalance


def _skew(deployment: Deployment, concurrency: int) -> dict[str, float]:
    """Max over mean of the hosts' rows under prompts of one kind, before and after a rebalance."""
    console.print("  prompts of one kind")
    load = SteadyLoad(deployment.grpc_address, [Job(SKEWED_IDS, 4, 0.0, 0)], concurrency)
    load.start()
    time.sleep(1.5 * WINDOW_S)  # so that the window holds nothing else
    before = deployment.topology().imbalance
    began_s = now_s()
    begun = deployment.rebalance().begun
    deployment.wait_until_settled(CHANGE_S)
    change_s = now_s() - began_s
    time.sleep(1.5 * WINDOW_S)
    after = deployment.topology().imbalance
    failed = sum(bool(stream.error) for stream in load.stop())
    return {"before": before, "after": after, "begun": begun, "change_s": change_s, "failed": failed}


def _event(deployment: Deployment, name: str, settle_s: float) -> Event:
    console.print(f"  {name}")
    before = deployment.topology()
    size = [len(before.routers), len(before.experts)]
    began_s, began_unix_s = now_s(), time.time()
    what, _, change = name.partition(" ")
    if change:
        wanted = int(change.rpartition(" ")[2])
        size[what == "experts"] = wanted
        deployment.scale({"routers": "router", "experts": "experts"}[what], wanted)
        after = deployment.wait_for_size(size[0], size[1], CHANGE_S)
    else:
        deployment.rebalance()
        after = deployment.wait_until_settled(CHANGE_S)
    # To the moment: it is seen half a second later. A rebalance may have found nothing to move.
    live_s = began_s + max(after.last_change.unix_s - began_unix_s, 0.0)
    time.sleep(settle_s)
    return Event(name, began_s, live_s, now_s())


def table(rows: Sequence[Row], usual: dict[str, float], run: int) -> Table:
    """For the terminal."""
    shown = Table(
        title=f"run {run}; undisturbed gaps p50 {usual['p50_ms']:.0f}, p99 {usual['p99_ms']:.0f} ms"
    )
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("event", lambda r: r.event),
        ("requests", lambda r: str(r.requests)),
        ("finished", lambda r: str(r.finished)),
        ("failed", lambda r: str(r.failed)),
        ("differing", lambda r: str(r.differing)),
        ("change s", lambda r: f"{r.change_s:.1f}"),
        ("longest gap ms", lambda r: f"{r.longest_gap_ms:.0f}"),
        ("x p99", lambda r: f"{r.gap_ratio:.1f}"),
        ("first token ms", lambda r: f"{r.longest_first_token_ms:.0f}"),
        ("tok/s", lambda r: f"{r.tokens_per_s:.0f}"),
    ]
    for title, _ in columns:
        shown.add_column(title, justify="left" if title == "event" else "right")
    for each in rows:
        shown.add_row(*(text(each) for _, text in columns))
    return shown


def main(
    runs: Annotated[int, typer.Option(min=1, help="In a row.")] = 3,
    concurrency: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 6,
    undisturbed_s: Annotated[float, typer.Option(help="Of the undisturbed phase.")] = 20.0,
    settle_s: Annotated[float, typer.Option(help="Behind every event.")] = 4.0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="dotted.key=value")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON; a PNG is written beside it.")] = None,
) -> None:
    """Measures live change under steady load."""
    results = []
    harmed = 0
    with tempfile.TemporaryDirectory(prefix="expertmesh-elastic-") as folder:
        for run in range(1, runs + 1):
            console.print(f"run {run} of {runs}")
            log_file = Path(folder) / f"serve-{run}.log"
            rows, streams, events, usual, imbalance = measure(
                concurrency, undisturbed_s, settle_s, overrides or (), log_file
            )
            Console(width=None if sys.stdout.isatty() else 140).print(table(rows, usual, run))
            console.print(
                f"prompts of one kind: max/mean over hosts {imbalance['before']:.2f}, "
                f"{imbalance['after']:.2f} after a rebalance of {imbalance['change_s']:.1f} s"
            )
            harmed += sum(r.failed + r.differing for r in rows) + int(imbalance["failed"])
            for stream in streams:
                if stream.error:
                    console.print(f"failed: {stream.error}")
            results.append(
                {"undisturbed": usual, "rows": [asdict(r) for r in rows], "imbalance": imbalance}
            )
            if output:
                title = f"{concurrency} streams of the demo checkpoint while experts and routers change"
                draw(output.with_suffix(".png"), title, streams, events)
    if output:
        machine = asdict(describe_machine(range(2), REPOSITORY))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(
            json.dumps({"machine": machine, "concurrency": concurrency, "runs": results}, indent=1) + "\n"
        )
        console.print(f"wrote {output}")
    raise typer.Exit(1 if harmed else 0)


if __name__ == "__main__":
    typer.run(main)
