"""Follows the coordinator's messages on behalf of one engine thread.

Messages come in on the actor's event loop; the engine thread asks at the borders of its steps. A
generation is prepared on a thread of its own, so that neither waits for it.

A link is prepared, then live; at a switch its successor is live and it is left behind, until the
successor has made a step. At an Abandon it is closed from wherever it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import Communicator


class Link(Protocol):
    """What a member steps with in one generation (`engine.link`)."""

    @property
    def number(self) -> int:
        """The generation's number."""
        ...

    @property
    def communicator(self) -> Communicator | None:
        """None in the fused mode, where nothing is shared."""
        ...


class Reports(Protocol):
    """What a member tells the coordinator; every method may be called from any thread."""

    def prepared(self, generation: int) -> None:
        """Weights and process group are ready here."""
        ...

    def prepare_failed(self, generation: int, reason: str, unmet: bool = False) -> None:
        """They can't be made ready here; `unmet`: because the members did not meet."""
        ...

    def abandoned(self, generation: int) -> None:
        """This member has left the generation."""
        ...

    def switched(self, generation: int) -> None:
        """This member has gone over from the generation to its successor."""
        ...

    def accuse(self, generation: int, reason: str) -> None:
        """A collective failed here."""
        ...

    def wake_request(self, generation: int, epoch: int) -> None:
        """Work has come while parked."""
        ...


LinkT = TypeVar("LinkT", bound=Link)


@dataclass(slots=True)
class _Live(Generic[LinkT]):
    link: LinkT
    epoch: int = 0
    """The epoch that this member is in, or parked behind."""
    requested: int = 0
    """The highest epoch asked for."""


class GenerationFollower(Generic[LinkT]):
    """Which generation is live here, whether it is awake, and whether it has been given up."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._changed = threading.Condition()
        self._live: _Live[LinkT] | None = None
        self._prepared: dict[int, LinkT] = {}
        self._left_behind: LinkT | None = None
        """Switched away from; kept until the successor has made a step."""
        self._woken: dict[int, int] = {}
        """The highest epoch published, by generation."""
        self._successor = 0
        self._given_up: dict[int, str] = {}
        self._highest = 0
        self._stopping = False
        self._background: list[threading.Thread] = []

    # ------------------------------------------------------------ messages (event loop)

    def on_prepare(self, number: int, build: Callable[[Callable[[], str | None]], LinkT]) -> None:
        """Starts preparing a generation in the background. Lower numbers and repeats are ignored.

        `build` makes the link; it gets a function that gives the reason once the generation has been
        given up, and raises whatever keeps it from being made.
        """
        with self._changed:
            if number <= self._highest:
                return
            self._highest = number
            self._in_background(self._prepare, number, build)

    def on_live(self, number: int, epoch: int = 0) -> None:
        """A prepared generation is live: parked behind epoch 0, or 1 to be entered at once."""
        with self._changed:
            link = self._prepared.pop(number, None)
            if link is None or number in self._given_up:
                return
            self._woken[number] = epoch
            self._live = _Live(link)
            self._changed.notify_all()

    def on_switch(self, number: int, successor: int) -> None:
        """From now on this member's headers tell that it is ready for the successor."""
        with self._changed:
            if self._live is not None and self._live.link.number == number:
                self._woken[successor] = 1
                self._successor = successor
                self._changed.notify_all()

    def on_wake(self, number: int, epoch: int) -> None:
        """Every member enters this epoch. Duplicates and other generations are ignored."""
        with self._changed:
            if number in self._woken:
                self._woken[number] = max(self._woken[number], epoch)
                self._changed.notify_all()

    def on_abandon(self, number: int, reason: str) -> None:
        """Leaves a generation; answered once the engine thread is out of it."""
        with self._changed:
            self._given_up.setdefault(number, reason)
            link = self._prepared.pop(number, None)
            inside = self._live is not None and self._live.link.number == number
            if inside and self._live is not None:
                link = self._live.link
            if link is not None and link.communicator is not None:
                link.communicator.abandon(reason)
            if link is not None and not inside:
                self._in_background(_reap, link)
            behind = self._left_behind is not None and self._left_behind.number == number
            if behind:
                self._close_left_behind()
            self._changed.notify_all()
        if not inside and not behind:
            self._reports.abandoned(number)

    def stop(self) -> None:
        """Ends every wait of the engine thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Drops what is live and prepared, once the engine thread has ended."""
        with self._changed:
            links = [*self._prepared.values(), *([self._live.link] if self._live else [])]
            links += [self._left_behind] if self._left_behind else []
            self._prepared.clear()
            self._live = self._left_behind = None
            for link in links:
                self._in_background(_reap, link)
            background = list(self._background)
        deadline_s = time.monotonic() + timeout_s
        for thread in background:
            thread.join(max(deadline_s - time.monotonic(), 0.0))

    # ------------------------------------------------------------ the engine thread

    def notify(self) -> None:
        """Makes a waiting engine thread look again (work has come). Callable from any thread."""
        with self._changed:
            self._changed.notify_all()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def wait_for_generation(self) -> LinkT | None:
        """Blocks until a generation is live here; None when stopping."""
        with self._changed:
            while not self._stopping:
                live = self._live
                if live is not None and live.link.number not in self._given_up:
                    return live.link
                if live is not None:
                    self._leave()
                self._changed.wait()
            return None

    def wait_until_awake(self, has_work: Callable[[], bool]) -> bool:
        """Blocks until the next epoch of the live generation has been published; asks for it when
        there is work. False when stopping.

        Raises:
            GenerationLostError: the generation was given up meanwhile.
        """
        with self._changed:
            while not self._stopping:
                live = self._require_live()
                woken = self._woken[live.link.number]
                if woken > live.epoch:
                    live.epoch = woken
                    return True
                if live.link.communicator is None:
                    if has_work() or self._successor:
                        return True
                elif has_work() and live.requested <= live.epoch:
                    live.requested = live.epoch + 1
                    self._reports.wake_request(live.link.number, live.requested)
                self._changed.wait()
            return False

    @property
    def successor(self) -> int:
        """The generation that this member is ready to go over to; 0 is none. Read before every step."""
        return self._successor

    def switch(self, successor: int) -> None:
        """All headers of a step told of this successor: the engine thread goes over to it, or is left
        without a generation when it is not part of it."""
        with self._changed:
            live = self._live
            assert live is not None
            self._left_behind = live.link
            self._successor = 0
            link = self._prepared.pop(successor, None)
            self._live = None if link is None else _Live(link)
            self._reports.switched(live.link.number)
            # Given up while the step was on its way: the verdict waits for this member to be out of it, and
            # the successor, given up with it as a rule, may never make a step.
            if self._live is None or live.link.number in self._given_up:
                self._close_left_behind()

    def stepped(self) -> None:
        """The live generation has made a step: what it was switched to from is needed no more."""
        if self._left_behind is not None:
            with self._changed:
                self._close_left_behind()

    def lost(self, error: GenerationLostError) -> None:
        """A collective failed in the live generation: accuse, and wait to be told to leave it."""
        with self._changed:
            number = error.generation
            if number not in self._given_up:
                self._reports.accuse(number, error.reason)
            while number not in self._given_up and not self._stopping:
                self._changed.wait()
            self._leave()

    @property
    def live_number(self) -> int:
        """The live generation's number, 0 for none."""
        with self._changed:
            return self._live.link.number if self._live is not None else 0

    # ------------------------------------------------------------ inside

    def _prepare(self, number: int, build: Callable[[Callable[[], str | None]], LinkT]) -> None:
        try:
            link = build(lambda: self._given_up.get(number))
        except Exception as error:
            unmet = isinstance(error, GenerationLostError)
            self._reports.prepare_failed(number, f"{type(error).__name__}: {error}", unmet)
            return
        with self._changed:
            wanted = number not in self._given_up
            if wanted:
                self._prepared[number] = link
        if wanted:
            self._reports.prepared(number)
        else:
            _reap(link)

    def _in_background(self, target: Callable[..., None], *args: Any) -> None:
        """On a thread of its own that a stuck group may block for good."""
        self._background = [thread for thread in self._background if thread.is_alive()]
        thread = threading.Thread(target=target, args=args, name=f"follower-{target.__name__}", daemon=True)
        self._background.append(thread)
        thread.start()

    def _require_live(self) -> _Live[LinkT]:
        if self._live is None:
            raise GenerationLostError(0, "no generation is live")
        number = self._live.link.number
        if number in self._given_up:
            raise GenerationLostError(number, self._given_up[number])
        return self._live

    def _close_left_behind(self) -> None:
        link, self._left_behind = self._left_behind, None
        if link is not None:
            self._in_background(_reap, link)
            self._woken.pop(link.number, None)
            self._reports.abandoned(link.number)

    def _leave(self) -> None:
        """The engine thread is out: drop the link (its group is reaped in the background)."""
        if self._live is not None and self._live.link.number in self._given_up:
            number = self._live.link.number
            self._in_background(_reap, self._live.link)
            self._live = None
            self._successor = 0
            self._woken.pop(number, None)
            self._reports.abandoned(number)


def _reap(link: Link) -> None:
    """Closes a broken group where a blocking destructor does no harm."""
    if link.communicator is not None:
        link.communicator.close()
