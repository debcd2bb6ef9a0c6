"""Log probabilities of tokens and of the most probable alternatives, by the raw logits.

Shape suffixes: N rows, V vocabulary, K alternatives, C cells (row, token) that may be alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from expertmesh.engine.batch import SampledToken


def score(logits_NV: Tensor, token_ids: Seq[int], n_alternatives: Seq[int]) -> list[SampledToken]:
    """Each row's token with its log probability, its rank and `n_alternatives` tokens beside it.

    The rank is 1 + the number of tokens with a larger logit; alternatives come most probable first,
    among equals the lowest id first.
    """
    tokens_N1 = torch.tensor(token_ids, dtype=torch.int64, device=logits_NV.device)[:, None]
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    own = logprobs_NV.gather(1, tokens_N1)[:, 0].tolist()
    ranks = ((logits_NV > logits_NV.gather(1, tokens_N1)).sum(dim=-1) + 1).tolist()
    alternatives = _alternatives(logits_NV, logprobs_NV, n_alternatives)
    return [
        SampledToken(token_id, ((token_id, logprob), *others), rank)
        for token_id, logprob, rank, others in zip(token_ids, own, ranks, alternatives, strict=True)
    ]


def _alternatives(
    logits_NV: Tensor, logprobs_NV: Tensor, n_alternatives: Seq[int]
) -> list[list[tuple[int, float]]]:
    n_rows, vocab_size = logits_NV.shape
    device = logits_NV.device
    wanted = [min(n, vocab_size) for n in n_alternatives]
    most = max(wanted)
    if most == 0:
        return [[] for _ in wanted]
    wanted_N = torch.tensor(wanted, device=device)
    top_NK = logits_NV.topk(most, dim=-1).values
    # topk alone leaves open which of several equal tokens it names.
    floors_N1 = top_NK.gather(1, (wanted_N - 1).clamp(min=0)[:, None])
    rows_C, tokens_C = (logits_NV >= floors_N1).nonzero(as_tuple=True)
    order_C = logits_NV[rows_C, tokens_C].argsort(descending=True, stable=True)
    order_C = order_C[rows_C[order_C].argsort(stable=True)]
    rows_C, tokens_C = rows_C[order_C], tokens_C[order_C]
    starts_N = torch.searchsorted(rows_C, torch.arange(n_rows, device=device))
    places_C = torch.arange(len(rows_C), device=device) - starts_N[rows_C]
    kept_C = places_C < wanted_N[rows_C]
    rows_C, tokens_C = rows_C[kept_C], tokens_C[kept_C]
    found: list[list[tuple[int, float]]] = [[] for _ in wanted]
    for row, token_id, logprob in zip(
        rows_C.tolist(), tokens_C.tolist(), logprobs_NV[rows_C, tokens_C].tolist(), strict=True
    ):
        found[row].append((token_id, logprob))
    return found
