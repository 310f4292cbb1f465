"""Philox4x32-10: random bits as a pure function of a key and a counter, the same on every device.

Ten rounds of multiplying and exchanging turn four 32-bit counters into four random words. Nothing
is stored between draws, so a dropout mask needs no memory: forward and backward each compute it
where they need it.

Source: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3 (2011).
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio, and the square root of 3 minus 1
MASK = np.uint64(0xFFFFFFFF)  # the low half of 64 bits
HALF = np.uint64(32)


# differs from fastai, whose masks are drawn by PyTorch's generator
def philox4x32(counter: list[Array], key: tuple[int, int]) -> list[Array]:
    """Four uint64 arrays that hold 32-bit counters -> four that hold 32-bit random words."""
    for turn in range(10):
        keys = [
            np.uint64((k + turn * step) & 0xFFFFFFFF)
            for k, step in zip(key, KEY_STEPS, strict=True)
        ]
        first = counter[0] * MULTIPLIERS[0]
        second = counter[2] * MULTIPLIERS[1]
        counter = [
            (second >> HALF) ^ counter[1] ^ keys[0],
            second & MASK,
            (first >> HALF) ^ counter[3] ^ keys[1],
            first & MASK,
        ]
    return counter


def uniform_bits(size: int, seed: int, stream: tuple[int, int]) -> Array:
    """`size` random words (uint32). Word i comes from block i // 4 of the stream (for example a
    step and a layer).
    """
    blocks = np.arange(-(-size // 4), dtype=np.uint64)
    counter = [
        blocks & MASK,
        blocks >> HALF,
        np.array([int(stream[0]) & 0xFFFFFFFF], np.uint64),  # the same in every block
        np.array([int(stream[1]) & 0xFFFFFFFF], np.uint64),
    ]
    words = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return np.array(words).T.astype(np.uint32).reshape(-1)[:size]
