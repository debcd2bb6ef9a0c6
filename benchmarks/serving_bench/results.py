"""From turns to the committed JSON: one row an engine, transport, precision and case, with ratios."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving_bench.gate import GateResult
from serving_bench.machine import Machine
from serving_bench.protocol import FOREIGN_CORES_LIMIT, Turn
from serving_bench.timing import Figures, ratio, summarise
from serving_bench.workload import Case

FORMAT = 1
BASELINE = "transformers"


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one engine, transport, precision and case over all rounds."""

    engine: str
    transport: str
    dtype: str
    case: Case
    figures: Figures
    quiet: bool
    """False: every turn ran beside foreign work, so the figures count for nothing."""
    n_rejected_turns: int
    foreign_cores_max: float
    """Over the turns that count."""
    client_cores: float
    """Mean over the turns that count."""
    step_ms: Mapping[str, float] | None
    output_ratio: float | None = None
    """End-to-end output tokens/s as a multiple of the baseline's."""
    decode_ratio: float | None = None


def build_rows(turns: Iterable[Turn]) -> list[Row]:
    """Groups the turns, leaves the rejected out, and adds the ratios to the baseline."""
    groups: dict[tuple[str, str, str, Case], list[Turn]] = {}
    for turn in turns:
        groups.setdefault((turn.engine, turn.transport, turn.dtype, turn.case), []).append(turn)
    rows = [_row(group) for group in groups.values()]
    baselines = {(row.dtype, row.case): row for row in rows if row.engine == BASELINE}
    return [_with_ratios(row, baselines.get((row.dtype, row.case))) for row in rows]


def _row(group: Sequence[Turn]) -> Row:
    accepted = [turn for turn in group if turn.accepted]
    counted = accepted or group
    first = group[0]
    return Row(
        engine=first.engine,
        transport=first.transport,
        dtype=first.dtype,
        case=first.case,
        figures=summarise([wave for turn in counted for wave in turn.waves]),
        quiet=bool(accepted),
        n_rejected_turns=len(group) - len(accepted),
        foreign_cores_max=max(turn.cpu.foreign_cores for turn in counted),
        client_cores=sum(turn.cpu.client_cores for turn in counted) / len(counted),
        step_ms=_mean_parts([turn.step_ms for turn in counted if turn.step_ms is not None]),
    )


def _mean_parts(readings: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    if not readings:
        return None
    parts = {part for reading in readings for part in reading}
    return {part: sum(r.get(part, 0.0) for r in readings) / len(readings) for part in sorted(parts)}


def _with_ratios(row: Row, baseline: Row | None) -> Row:
    if baseline is None:
        return row
    ours, theirs = row.figures, baseline.figures
    return dataclasses.replace(
        row,
        output_ratio=ratio(ours.output_tokens_per_s, theirs.output_tokens_per_s),
        decode_ratio=ratio(ours.decode_tokens_per_s, theirs.decode_tokens_per_s),
    )


def as_json(
    *,
    machine: Machine,
    threads: int,
    gate: Sequence[GateResult],
    notes: Mapping[str, Mapping[str, str]],
    rows: Sequence[Row],
    turns: Sequence[Turn],
    started_at: str,
) -> dict[str, Any]:
    """The whole run; turns carry each wave's rate, not each token's time."""
    return {
        "format": FORMAT,
        "started_at": started_at,
        "machine": asdict(machine),
        "threads": threads,
        "foreign_cores_limit": FOREIGN_CORES_LIMIT,
        "gate_fp32": [result.as_json() for result in gate],
        "engines": {name: dict(note) for name, note in notes.items()},
        "rows": [_rounded(asdict(row)) for row in rows],
        "turns": [_turn_json(turn) for turn in turns],
    }


def _turn_json(turn: Turn) -> dict[str, Any]:
    fields = {
        "engine": turn.engine,
        "transport": turn.transport,
        "dtype": turn.dtype,
        "case": asdict(turn.case),
        "round": turn.round,
        "accepted": turn.accepted,
        "cpu": asdict(turn.cpu),
        "output_tokens_per_s": [wave.output_tokens_per_s for wave in turn.waves],
        "step_ms": turn.step_ms,
    }
    rounded: dict[str, Any] = _rounded(fields)
    return rounded


def _rounded(value: Any) -> Any:
    """Floats to four decimals, all the way down."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the result, readable in a diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def read_rows(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a committed result. Raises ValueError for a format that this code does not know."""
    if result.get("format") != FORMAT:
        raise ValueError(f"the result has format {result.get('format')!r}; this code reads {FORMAT}")
    return [
        Row(**{**row, "case": Case(**row["case"]), "figures": Figures(**row["figures"])})
        for row in result["rows"]
    ]
