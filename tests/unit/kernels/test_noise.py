"""The noise of draws: the right bits, the right distribution, and no row depends on its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expertmesh.kernels.noise import exponential, exponential_of, gumbel, random_bits, seeds_tensor

CPU = torch.device("cpu")
MASK = (1 << 64) - 1


def mix(z: int) -> int:
    """splitmix64's finaliser on Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_bits_are_those_of_splitmix64() -> None:
    # First outputs of the published generator for seed 1234567.
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        outputs.append(mix(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    seeds, positions = [0, 1, 1 << 63, MASK], [0, 7, 1, 100_000]
    bits = random_bits(seeds_tensor(seeds, CPU), torch.tensor(positions), 5)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        key = mix((mix(seed) + position * 0x9E3779B97F4A7C15) & MASK)
        expected = [mix((key + (v + 1) * 0x9E3779B97F4A7C15) & MASK) for v in range(5)]
        assert [b & MASK for b in bits[row].tolist()] == expected


@pytest.mark.parametrize("vocab_size", [7, 1001, 32003])
def test_a_row_is_the_same_alone_and_among_others(vocab_size: int) -> None:
    seeds = seeds_tensor([i * 0x123456789ABCDEF for i in range(33)], CPU)
    positions = torch.arange(33) * 3
    together = exponential(seeds, positions, vocab_size)
    for row in (0, 1, 15, 32):
        alone = exponential(seeds[row : row + 1], positions[row : row + 1], vocab_size)
        assert torch.equal(alone[0], together[row])


def test_the_noise_is_exponential_and_uncorrelated() -> None:
    n = 500
    noise = exponential(seeds_tensor([42] * n, CPU), torch.arange(n), 1000).double().numpy()
    quantiles = np.sort(noise, axis=None)
    expected = -np.log1p(-(np.arange(quantiles.size) + 0.5) / quantiles.size)
    distance = np.abs(np.exp(-quantiles) - np.exp(-expected)).max()
    # Kolmogorov-Smirnov at p = 0.001.
    assert distance < 1.95 / np.sqrt(quantiles.size)
    for a, b in ((noise[:, :-1], noise[:, 1:]), (noise[:-1], noise[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
    neighbours = exponential(seeds_tensor([7, 8], CPU), torch.zeros(2, dtype=torch.int64), 100_000)
    assert abs(np.corrcoef(neighbours.numpy())[0, 1]) < 4 / np.sqrt(100_000)


def test_no_bits_give_noise_that_is_zero_or_infinite() -> None:
    noise = exponential_of(torch.tensor([[0, 1, 2, -1, -2, 1 << 62, -(1 << 63)]]))
    assert torch.isfinite(noise).all()
    assert (noise > 0).all()
    assert noise.min() < 1e-18
    assert noise.max() > 16


def test_gumbel_noise_is_the_same_draw() -> None:
    seeds, positions = seeds_tensor(list(range(64)), CPU), torch.arange(64)
    probs = torch.softmax(torch.randn(64, 50, generator=torch.Generator().manual_seed(1)), dim=-1)
    race = (probs / exponential(seeds, positions, 50)).argmax(dim=-1)
    assert torch.equal(race, (probs.log() + gumbel(seeds, positions, 50)).argmax(dim=-1))
