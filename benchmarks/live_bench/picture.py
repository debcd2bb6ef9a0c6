"""Throughput and gaps over time, with the events marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from live_bench.load import Stream
from live_bench.report import Event

BIN_S = 0.5


def draw(path: Path, title: str, streams: Sequence[Stream], events: Sequence[Event]) -> None:
    """Writes a PNG."""
    start_s = min(s.sent_s for s in streams)
    end_s = max(s.ended_s for s in streams)
    n_bins = int((end_s - start_s) / BIN_S) + 1
    tokens, gaps_ms = [0.0] * n_bins, [0.0] * n_bins
    for stream in streams:
        for at_s, n in zip(stream.arrivals_s, stream.n_tokens, strict=True):
            tokens[int((at_s - start_s) / BIN_S)] += n
        for at_s, gap_s in stream.gaps():
            index = int((at_s - start_s) / BIN_S)
            gaps_ms[index] = max(gaps_ms[index], 1000 * gap_s)
    times_s = [BIN_S * (i + 0.5) for i in range(n_bins)]
    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(12, 6), layout="constrained")
    upper.plot(times_s, [n / BIN_S for n in tokens], color="tab:blue", linewidth=1.2)
    upper.set_ylabel("tokens/s")
    upper.set_ylim(bottom=0)
    lower.plot(times_s, gaps_ms, color="tab:red", linewidth=1.2)
    lower.set_ylabel(f"longest gap in {BIN_S:g} s, ms")
    lower.set_xlabel("s")
    lower.set_ylim(bottom=0)
    for event in events:
        for axis in (upper, lower):
            axis.axvspan(event.began_s - start_s, event.live_s - start_s, color="0.88", zorder=0)
        upper.annotate(
            event.name,
            (event.began_s - start_s, 1.0),
            xycoords=("data", "axes fraction"),
            rotation=35,
            fontsize=8,
            annotation_clip=False,
        )
    figure.suptitle(title, fontsize=10, y=1.06)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
