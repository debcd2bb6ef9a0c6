"""The table of what drafts bring, and the committed one."""

from __future__ import annotations

import json
from typing import Any

from serving_bench.tables import begin_mark, render_into
from speculative_benchmark import BATCHES, DOCUMENT, RESULT, SHAPES, markdown, table


def row(shape: str, requests: int, speed_up: float) -> dict[str, Any]:
    return {
        "shape": shape,
        "requests": requests,
        "off_tokens_per_s": 100.4,
        "mtp_tokens_per_s": 130.6,
        "speed_up": speed_up,
        "speed_up_range": [speed_up - 0.1, speed_up + 0.1],
        "accepted_share": 0.7012,
    }


def test_a_line_tells_of_both_and_of_their_ratio() -> None:
    lines = table([row("fused", 1, 1.3)])
    assert lines[0][2:5] == ["off, tokens/s", "mtp, tokens/s", "speed-up"]
    assert lines[1] == ["fused", "1", "100", "131", "1.30 (1.20 to 1.40)", "70.1 %"]


def test_the_page_shows_the_committed_result() -> None:
    result = json.loads(RESULT.read_text())
    assert [(r["shape"], r["requests"]) for r in result["rows"]] == [
        (s, n) for s in SHAPES for n in BATCHES
    ]
    page = DOCUMENT.read_text()
    assert render_into(page, markdown(result), begin_mark("speculative.py")) == page
