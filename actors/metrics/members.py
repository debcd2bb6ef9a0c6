"""What routers and expert hosts say of themselves, once a second, from numbers that they keep anyway."""

from __future__ import annotations

from expertmesh.cluster.load import Load
from expertmesh.cluster.metrics import catalog
from expertmesh.cluster.metrics.sink import MetricSink
from expertmesh.engine.exchange.counted import Traffic
from expertmesh.engine.meter import StepMeter


def new_meter() -> StepMeter:
    """A meter with the catalogue's buckets."""
    return StepMeter(catalog.STEP_SECONDS.bounds, catalog.QUEUE_WAIT.bounds, catalog.BATCH.bounds)


def tell_load(sink: MetricSink, load: Load, traffic: Traffic) -> None:
    """What routers and expert hosts have in common."""
    sink.total(catalog.DECODE_STEPS, load.decode_steps)
    for part, part_ms in load.decode_part_ms.items():
        sink.total(catalog.DECODE_PART_SECONDS, part_ms * 1e-3, part=part)
    sink.total(catalog.BUSY_SECONDS, load.busy_s)
    sink.total(catalog.EXCHANGED_BYTES, traffic.sent_bytes, direction="sent")
    sink.total(catalog.EXCHANGED_BYTES, traffic.received_bytes, direction="received")
    sink.set(catalog.LOADED_BYTES, load.loaded_bytes)


def tell_host(sink: MetricSink, load: Load, traffic: Traffic) -> None:
    """All that an expert host says."""
    tell_load(sink, load, traffic)
    sink.total(catalog.HOST_ROWS, load.tokens)


def tell_router(
    sink: MetricSink, load: Load, traffic: Traffic, meter: StepMeter, n_preemptions: int
) -> None:
    """All that a router says."""
    tell_load(sink, load, traffic)
    sink.set(catalog.QUEUED_REQUESTS, load.queued_requests)
    sink.set(catalog.RUNNING_REQUESTS, load.running_requests)
    sink.set(catalog.QUEUED_TOKENS, load.queued_tokens)
    sink.set(catalog.CACHE_BLOCKS, load.cache_blocks)
    sink.set(catalog.CACHE_BLOCKS_USED, load.cache_blocks_used)
    sink.total(catalog.PREEMPTIONS, n_preemptions)
    sink.total(catalog.DRAFT_TOKENS, load.draft_tokens)
    sink.total(catalog.ACCEPTED_DRAFT_TOKENS, load.accepted_tokens)
    sink.total(catalog.COMPUTED_TOKENS, meter.prefill_tokens, phase="prefill")
    sink.total(catalog.COMPUTED_TOKENS, meter.decode_tokens, phase="decode")
    sink.total(catalog.STEPS_REPEATED, meter.steps_repeated)
    sink.observe_counts(catalog.STEP_SECONDS, meter.step_s.take())
    sink.observe_counts(catalog.QUEUE_WAIT, meter.wait_s.take())
    sink.observe_counts(catalog.BATCH, meter.sequences.take())
