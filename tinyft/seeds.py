"""Makes every random number: by a generator that is made from what the draw is for.

No generator is ever shared or advanced between two draws. The crop of picture 17 in epoch 3
depends on (seed, "augment", 3, 17) and on nothing else: not on the number of threads, not on what
was drawn before. So any step of a run can be made again, alone.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """The generator of one draw, keyed by (seed, purpose, counters).

    `purpose` is a word: initialise, split, shuffle, augment and known in training, inspect and
    bench outside of it. `counters` say which draw of that kind it is, as (epoch, index). Dropout
    draws inside the backends instead (`backends.reference.Backend.dropout`).
    """
    # differs from fastai, whose one generator every draw advances
    key = (seed, zlib.crc32(purpose.encode()), *counters)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
