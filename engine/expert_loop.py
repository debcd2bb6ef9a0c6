"""The expert host's loop: one thread that serves every MoE layer of every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertmesh.engine.step_thread import StepThread

if TYPE_CHECKING:
    from expertmesh.engine.exchange.header import StepAgreement
    from expertmesh.engine.follower import GenerationFollower
    from expertmesh.engine.link import HostLink
    from expertmesh.engine.profile import PartTimer


class ExpertLoop:
    """Steps with the other ranks while the generation is awake; uses no processor time while parked."""

    def __init__(
        self,
        *,
        follower: GenerationFollower[HostLink],
        timer: PartTimer,
    ) -> None:
        self._timer = timer
        self._rows = 0
        self._follower = follower
        self._thread = StepThread("experts", follower, has_work=lambda: False, step=self.step)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread after the step in progress."""
        self._thread.stop(timeout_s)

    def check(self) -> None:
        """Raises what ended the thread, if it has ended."""
        self._thread.check()

    @property
    def rows(self) -> int:
        """Token-expert rows served since the start."""
        return self._rows

    def step(self, link: HostLink) -> StepAgreement:
        """Agree, then receive, compute and answer in every MoE layer."""
        self._timer.begin()
        agreement = link.agree(self._follower.successor)
        self._timer.mark("wait")
        if agreement.parks:
            return agreement
        self._rows += sum(map(link.exchange.serve, link.exchange.due))
        decode = all(h.tokens == h.decode_tokens for h in agreement.headers)
        self._timer.commit(decode=decode and agreement.n_tokens > 0)
        return agreement
