"""What Prometheus would scrape from a Ray cluster."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 60.0
POLL_S = 0.5
REST_S = 5.0


@dataclass(frozen=True)
class Scrape:
    """The series of all nodes: (name, labels, value)."""

    samples: tuple[tuple[str, dict[str, str], float], ...]

    @property
    def names(self) -> set[str]:
        """Every series' name."""
        return {name for name, _, _ in self.samples}

    def series(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Series of a name with these labels among theirs."""
        return [
            (found, value)
            for n, found, value in self.samples
            if n == name and labels.items() <= found.items()
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Over all series of a name with these labels; 0 when there is none."""
        return sum(value for _, value in self.series(name, **labels))


def scrape(urls: Iterable[str]) -> Scrape:
    """Reads what the nodes export now."""
    samples = []
    for url in urls:
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        for family in text_string_to_metric_families(text):
            samples += [(sample.name, sample.labels, sample.value) for sample in family.samples]
    return Scrape(tuple(samples))


def scrape_until(urls: Iterable[str], condition: Callable[[Scrape], object], what: str) -> Scrape:
    """The first scrape for which the condition holds."""
    urls, deadline_s = list(urls), time.monotonic() + WAIT_S
    while not condition(found := scrape(urls)):
        assert time.monotonic() < deadline_s, f"{what}: not exported within {WAIT_S:g} s"
        time.sleep(POLL_S)
    return found


def scrape_at_rest(urls: Iterable[str], prefix: str) -> Scrape:
    """A scrape whose counters have stood still for REST_S: several times what a process takes to tell."""
    urls, since_s, last = list(urls), time.monotonic(), None
    deadline_s = since_s + WAIT_S
    while True:
        found = scrape(urls)
        counters = {
            (name, *sorted(labels.items())): value
            for name, labels, value in found.samples
            if name.startswith(prefix) and name.endswith(("_total", "_count"))
        }
        if counters != last:
            last, since_s = counters, time.monotonic()
        if time.monotonic() - since_s >= REST_S:
            return found
        assert time.monotonic() < deadline_s, f"counters still change after {WAIT_S:g} s"
        time.sleep(POLL_S)
