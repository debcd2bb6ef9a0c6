"""When experts are rebalanced without anybody asking: by the clock, and by measured imbalance."""

from __future__ import annotations

from expertmesh.cluster.scaling import EXPERTS, RebalanceRefusedError, ScalingFacts
from expertmesh.configs.schema import BalanceConfig


def check_rebalance(config: BalanceConfig, facts: ScalingFacts) -> None:
    """Returns when there is load to rebalance by.

    Raises:
        RebalanceRefusedError: there is not; the message says what is missing.
    """
    if not facts.serving:
        raise RebalanceRefusedError("no generation is live")
    if not facts.n_experts:
        raise RebalanceRefusedError("no experts stand on hosts of their own: there is nothing to move")
    if len(facts.of(EXPERTS)) < 2:
        raise RebalanceRefusedError("there is one expert host alone: its load is all there is")
    if facts.window_rows < config.min_rows:
        raise RebalanceRefusedError(
            f"too little was routed to tell the experts' load: {facts.window_rows} rows a MoE layer in the "
            f"last {config.window_s:g} s, {config.min_rows} are needed (balance.min_rows)"
        )


class BalanceTrigger:
    """Says when to rebalance. The clock is passed in.

    Args:
        config: the deployment's `balance` section.
        now_s: the interval's first round begins here.
    """

    def __init__(self, config: BalanceConfig, now_s: float) -> None:
        self._config = config
        self._last_s = now_s
        """When the last interval ended."""
        self._quiet_until_s = now_s

    def due(self, facts: ScalingFacts, now_s: float) -> str | None:
        """Why to rebalance now; None when there is no reason to.

        After a reason was given, the imbalance is looked at again when the load window holds none of what
        was routed before.
        """
        config = self._config
        if config.interval_s is None and config.max_imbalance is None:
            return None
        if not facts.steady or facts.draining:
            return None
        try:
            check_rebalance(config, facts)
        except RebalanceRefusedError:
            return None
        why = None
        if config.interval_s is not None and now_s - self._last_s >= config.interval_s:
            why = f"{config.interval_s:g} s have passed since the last time"
        elif (
            config.max_imbalance is not None
            and facts.imbalance > config.max_imbalance
            and now_s >= self._quiet_until_s
        ):
            why = (
                f"the most loaded expert host has {facts.imbalance:.2f} times the mean load, "
                f"more than {config.max_imbalance:g}"
            )
        if why is not None:
            self._last_s = now_s
            self._quiet_until_s = now_s + config.window_s
        return why
