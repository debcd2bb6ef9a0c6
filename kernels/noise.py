"""Counter-based noise for draws: a pure function of seed, position and token.

No generator has a state, so that a draw is the same whatever batch, router or attempt it happens in.
The bits are those of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), the same on every device.

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INT64 = torch.int64


def _signed(value: int) -> int:
    """An unsigned 64-bit value as the int64 with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def seeds_tensor(seeds: list[int], device: torch.device) -> Tensor:
    """Unsigned 64-bit seeds as an int64 tensor [N] with the same bits."""
    return torch.tensor([_signed(seed & 0xFFFFFFFFFFFFFFFF) for seed in seeds], dtype=_INT64, device=device)


def _shift_right(bits: Tensor, n: int) -> Tensor:
    """A logical shift; that of int64 is arithmetic."""
    return (bits >> n).bitwise_and_((1 << (64 - n)) - 1)


def _mix_(bits: Tensor) -> Tensor:
    """splitmix64's finaliser, in place."""
    bits.bitwise_xor_(_shift_right(bits, 30)).mul_(_MIX_1)
    bits.bitwise_xor_(_shift_right(bits, 27)).mul_(_MIX_2)
    return bits.bitwise_xor_(_shift_right(bits, 31))


def random_bits(seeds_N: Tensor, positions_N: Tensor, vocab_size: int) -> Tensor:
    """64 random bits for each row and token, as int64 [N, V].

    Row (seed, position) holds the first V outputs of splitmix64 started at mix(mix(seed) + position
    * golden ratio). Both arguments are int64 [N] on one device.
    """
    keys_N = _mix_(_mix_(seeds_N.clone()) + positions_N * _GOLDEN)
    steps_V = torch.arange(1, vocab_size + 1, dtype=_INT64, device=seeds_N.device) * _GOLDEN
    return _mix_(keys_N[:, None] + steps_V)


def exponential(seeds_N: Tensor, positions_N: Tensor, vocab_size: int) -> Tensor:
    """Exponential(1) noise, fp32 [N, V], all entries finite and above 0.

    argmax(p / noise) draws a token with probability p: the Gumbel-max trick without its second
    logarithm. Small values, which decide the draw, keep fp32's full relative precision.
    """
    return exponential_of(random_bits(seeds_N, positions_N, vocab_size))


def exponential_of(bits_NV: Tensor) -> Tensor:
    """Exponential(1) noise, fp32, out of 64 random bits each."""
    u_NV = _shift_right(bits_NV, 1).to(torch.float32).mul_(2.0**-63)
    return u_NV.clamp_(2.0**-64, 1.0 - 2.0**-24).neg_().log1p_().neg_()


def gumbel(seeds_N: Tensor, positions_N: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, fp32 [N, V]: argmax(log p + noise) makes the draw of `exponential`."""
    return exponential(seeds_N, positions_N, vocab_size).log_().neg_()
