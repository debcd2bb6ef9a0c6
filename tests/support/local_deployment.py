"""A whole deployment in one process, without Ray: engine threads, gloo groups, and a director that
plays the coordinator and can abandon a generation after any collective."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from local_members import CPU, LocalHost, LocalRouter
from torch import Tensor

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import Communicator, PendingExchange
from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.rendezvous import Store, Transport, build_communicator
from expertmesh.engine.exchange.rows import RowFormat
from expertmesh.engine.request import Request, RequestKey, RouterLoad, SequenceNews
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.architectures.base import Architecture
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.decoder import Decoder
from expertmesh.models.experts import ExpertBank
from expertmesh.models.quantisation import HeldAs
from expertmesh.models.registry import ARCHITECTURES

LOOPBACK = "127.0.0.1"
DEADLINE_S = 60.0

AbortPlan = Callable[[int], int | None]
"""Generation number to the collective of router 0 after which it is abandoned; None: never."""


@dataclass(frozen=True)
class Settings:
    """What a test varies."""

    checkpoint: Path
    n_routers: int = 1
    n_hosts: int = 2
    n_redundant: int = 0
    """Slots of each layer for second copies of experts."""
    dtype: torch.dtype = torch.float32
    tile_rows: int | None = None
    block_tokens: int = 4
    n_blocks: int = 256
    max_step_tokens: int = 64
    max_running: int = 32
    step_budget_ms: float = 1e6
    transport: Transport = "local"
    architectures: Mapping[str, Architecture] = field(default_factory=lambda: ARCHITECTURES)
    moves_experts: bool = False
    """Planned changes follow each other without a pause; each gives every host other experts."""
    held_as: HeldAs = "as_stored"
    """How routed experts are held in memory."""
    replacement: Path | None = None
    """With it, every generation but the first holds its weights as version 2, beside version 1."""
    drafts: int = 0
    """Made for each sequence in each step."""


class AbortingCommunicator:
    """Counts completed collectives and abandons the generation after the chosen one."""

    def __init__(self, inner: Communicator, abort_after: int | None) -> None:
        self._inner = inner
        self._abort_after = abort_after
        self._n_collectives = 0
        self.generation, self.rank, self.device = inner.generation, inner.rank, inner.device
        self.abandon, self.close = inner.abandon, inner.close

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        rows = self._inner.all_gather(values)
        self._count()
        return rows

    def all_to_all(self, *args: Any) -> PendingExchange:
        pending = self._inner.all_to_all(*args)

        def finish() -> Tensor:
            received = pending.wait()
            self._count()
            return received

        return PendingExchange(finish, torch.empty(0))

    def _count(self) -> None:
        self._n_collectives += 1
        if self._n_collectives == self._abort_after:
            reason = f"aborted after collective {self._n_collectives}"
            self.abandon(reason)
            raise GenerationLostError(self.generation, reason)


@dataclass
class Finished:
    """What a request has brought so far."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    error: str = ""
    draft_tokens: int = field(default=0, compare=False)
    accepted_tokens: int = field(default=0, compare=False)


class LocalDeployment:
    """Routers and hosts as threads; `run` gives requests to routers and waits for their ends."""

    def __init__(self, settings: Settings, abort_plan: AbortPlan = lambda generation: None) -> None:
        self.settings = settings
        self._abort_plan = abort_plan
        paths = [settings.checkpoint, *([settings.replacement] if settings.replacement else [])]
        self._checkpoints = {
            version: Checkpoint.open(path, settings.architectures, drafts=settings.drafts > 0)
            for version, path in enumerate(paths, 1)
        }
        self.spec = self._checkpoints[1].spec
        self._store = Store(LOOPBACK)
        self._changed = threading.Condition()
        self._director = threading.Thread(target=self._direct, daemon=True)
        self._stopping = False
        self._number = 0
        self._answers: set[tuple[str, int, int]] = set()
        """(what, generation, rank)"""
        self._engaged: list[int] = []
        """The live generation and the one prepared beside it."""
        self._epochs: dict[int, int] = {}
        self._accused = False
        self.n_switches = 0
        self._failures: list[str] = []
        self._finished: dict[RequestKey, Finished] = {}
        self.routers = [LocalRouter(self, rank) for rank in range(settings.n_routers)]
        self.hosts = [LocalHost(self, settings.n_routers + h) for h in range(settings.n_hosts)]
        self._members: list[Any] = [*self.routers, *self.hosts]

    # ------------------------------------------------------------ for tests

    def __enter__(self) -> LocalDeployment:
        for member in self._members:
            member.start()
        self._director.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._director.join(10)
        # Side by side: one member's gloo group can wait for the end of another's.
        with ThreadPoolExecutor(len(self._members)) as each:
            list(each.map(lambda member: member.stop(), self._members))

    @property
    def generation(self) -> int:
        """The number of the last generation formed."""
        return self._number

    def run(
        self, requests: Sequence[Request], router: Callable[[int], int] = lambda i: 0
    ) -> list[Finished]:
        """Submits all requests (`router(i)` is the router of the i-th) and waits for their ends."""
        for request in requests:
            self._finished[request.key] = Finished()
        for index, request in enumerate(requests):
            self.routers[router(index)].engine.submit(request)
        with self._changed:
            done = self._changed.wait_for(
                lambda: all(self._finished[r.key].finish_reason for r in requests), DEADLINE_S
            )
        for member in self._members:
            member.check()
        assert done, f"not finished within {DEADLINE_S} s: {self._failures}"
        return [self._finished[r.key] for r in requests]

    def sink(self, news: Sequence[SequenceNews], _load: RouterLoad) -> None:
        with self._changed:
            for item in news:
                finished = self._finished[item.key]
                assert item.index == len(finished.token_ids), "tokens come in order, once"
                finished.token_ids.extend(item.token_ids)
                finished.logprobs.extend(item.logprobs)
                finished.prompt_logprobs.extend(item.prompt_logprobs)
                finished.finish_reason = item.finish_reason
                finished.error = item.error
                finished.draft_tokens += item.draft_tokens
                finished.accepted_tokens += item.accepted_tokens
            self._changed.notify_all()

    # ------------------------------------------------------------ the director

    def tell(self, what: str, rank: int, number: int) -> None:
        with self._changed:
            self._answers.add((what, number, rank))
            self._changed.notify_all()

    def wake(self, number: int, epoch: int) -> None:
        with self._changed:
            if number not in self._epochs or epoch <= self._epochs[number]:
                return
            self._epochs[number] = epoch
        for member in self._members:
            member.follower.on_wake(number, epoch)

    def accuse(self, number: int, reason: str) -> None:
        with self._changed:
            if number in self._engaged:
                self._accused = True
                self._failures.append(reason)
                self._changed.notify_all()

    def _direct(self) -> None:
        """The coordinator's part: form, move experts if asked to, and form anew when a step breaks."""
        while not self._stopping:
            self._accused = False
            self._engaged = []
            self._prepare()
            if self._all("prepared", self._number):
                self._epochs[self._number] = 0
                for member in self._members:
                    member.follower.on_live(self._number)
            while self.settings.moves_experts and self._goes_on and self._move():
                pass
            with self._changed:
                self._changed.wait_for(lambda: not self._goes_on)
            for number in self._engaged:
                for member in self._members:
                    member.follower.on_abandon(number, "the test says so")
            for number in self._engaged:
                self._all("abandoned", number, at_any_rate=True)

    @property
    def _goes_on(self) -> bool:
        return not (self._accused or self._stopping)

    def _prepare(self) -> None:
        self._number += 1
        self._engaged.append(self._number)
        for member in self._members:
            member.follower.on_prepare(self._number, member.build(self._number))

    def _move(self) -> bool:
        """One planned change; False when it was broken off."""
        number = self._number
        self._prepare()
        if not self._all("prepared", self._number):
            return False
        self._epochs[self._number] = 1
        for member in self._members:
            member.follower.on_switch(number, self._number)
        self.wake(number, self._epochs[number] + 1)
        if not self._all("abandoned", number):
            return False
        self._engaged.remove(number)
        self.n_switches += 1
        return True

    def _all(self, what: str, number: int, *, at_any_rate: bool = False) -> bool:
        """Waits for every member's answer; whether they all came."""

        def have_all() -> bool:
            return all((what, number, rank) in self._answers for rank in range(len(self._members)))

        with self._changed:
            self._changed.wait_for(
                lambda: have_all() or self._stopping or (self._accused and not at_any_rate), DEADLINE_S
            )
            return have_all()

    # ------------------------------------------------------------ what members build

    @property
    def mode(self) -> ComputeMode:
        return ComputeMode(self.settings.tile_rows)

    def layout(self, number: int) -> RankLayout:
        """Placements differ from generation to generation: host h holds every n-th expert."""
        n_hosts = self.settings.n_hosts
        order = list(range(self.spec.n_experts))
        order = order[number % 3 :] + order[: number % 3]
        # Second copies, each on another host than the first.
        first = 1 if n_hosts and self.spec.n_experts % n_hosts == 0 else 0
        order += order[first : first + self.settings.n_redundant]
        slots = tuple(tuple(order[h::n_hosts]) for h in range(n_hosts))
        names = [f"member {rank}" for rank in range(self.settings.n_routers + n_hosts)]
        return RankLayout(
            number,
            self.settings.n_routers,
            (slots,) * len(self.spec.moe_layers),
            tuple(names),
            self.spec.n_draft_moe_layers,
        )

    def communicator(self, number: int, rank: int, abandoned: Callable[[], str | None]) -> Communicator:
        communicator = build_communicator(
            generation=number,
            rank=rank,
            members=self.layout(number).members,
            store_address=self._store.address,
            host=LOOPBACK,
            device=CPU,
            transport=self.settings.transport,
            prepare_s=DEADLINE_S,
            collective_s=DEADLINE_S,
            abandoned=abandoned,
        )
        return AbortingCommunicator(communicator, self._abort_plan(number) if rank == 0 else None)

    @property
    def rows(self) -> RowFormat:
        top_k = self.spec.moe_layers[0].ffn.gate.top_k  # type: ignore[union-attr]
        return RowFormat(self.spec.hidden_size, top_k, self.settings.dtype)

    def versions(self, number: int) -> list[int]:
        """Of the weights that a generation holds."""
        return [1] if number == 1 else list(self._checkpoints)

    def bank(self, slots: Sequence[Sequence[int]], version: int = 1) -> ExpertBank:
        return ExpertBank.load(
            self._checkpoints[version],
            self.spec,
            slots,
            mode=self.mode,
            dtype=self.settings.dtype,
            device=CPU,
            held_as=self.settings.held_as,
        )

    def decoder(self, version: int) -> Decoder:
        return Decoder.load(
            self._checkpoints[version],
            self.spec,
            mode=self.mode,
            dtype=self.settings.dtype,
            device=CPU,
            max_tokens=self.spec.max_position_tokens,
        )
