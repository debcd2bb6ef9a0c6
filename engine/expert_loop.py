"""The expert host's loop: one thread that serves every MoE layer of every step."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import torch

from expertmesh.engine.errors import EngineStoppedError, GenerationLostError

if TYPE_CHECKING:
    from expertmesh.engine.follower import GenerationFollower
    from expertmesh.engine.link import HostLink
    from expertmesh.engine.profile import PartTimer

logger = logging.getLogger(__name__)


class ExpertLoop:
    """Steps with the other ranks while the generation is awake; uses no processor time while parked."""

    def __init__(
        self,
        *,
        follower: GenerationFollower[HostLink],
        n_moe_layers: int,
        timer: PartTimer,
    ) -> None:
        self._follower = follower
        self._n_moe_layers = n_moe_layers
        self._timer = timer
        self._rows = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="experts", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread after the step in progress."""
        self._follower.stop()
        self._thread.join(timeout_s)
        self._follower.close(timeout_s)

    def check(self) -> None:
        """Raises what ended the thread, if it has ended."""
        if self._failure is not None:
            raise EngineStoppedError(f"the expert thread died: {self._failure!r}")

    @property
    def rows(self) -> int:
        """Token-expert rows served since the start."""
        return self._rows

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while (link := self._follower.wait_for_generation()) is not None:
                try:
                    self._serve(link)
                except GenerationLostError as lost:
                    logger.warning("%s", lost)
                    self._follower.lost(lost)
        except BaseException as error:
            logger.exception("the expert thread died")
            self._failure = error

    def _serve(self, link: HostLink) -> None:
        while self._follower.wait_until_awake(lambda: False):
            while self.step(link):
                pass

    def step(self, link: HostLink) -> bool:
        """Agree, then receive, compute and answer in every MoE layer. False when all ranks park."""
        self._timer.begin()
        agreement = link.agree()
        self._timer.mark("wait")
        if agreement.parks:
            return False
        if agreement.n_tokens:
            rows = sum(link.exchange.serve_layer(layer) for layer in range(self._n_moe_layers))
            self._rows += rows
        decode = all(h.tokens == h.decode_tokens for h in agreement.headers)
        self._timer.commit(decode=decode and agreement.n_tokens > 0)
        return True
