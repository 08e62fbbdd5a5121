"""Which puzzles belong to which split: decided by the puzzle itself, so that splits can never share one.

A puzzle's canonical key is the same for all its rotations, reflections and colour permutations; the key's hash picks the
split. Two splits are therefore disjoint up to symmetry by construction, at any size, with no list to compare.
"""

import hashlib

import numpy as np

# Percent of all possible puzzles. `train` comes with solutions (SFT); `rl` is never solved for the model.
SHARES = {"train": 40, "rl": 40, "val": 5, "test": 15}
SPLITS = tuple(SHARES)


def split_of(key: bytes) -> str:
    """The split that a canonical key falls into."""
    bucket = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 100
    for split, share in SHARES.items():
        bucket -= share
        if bucket < 0:
            return split
    raise AssertionError("SHARES must sum to 100")


def rng_for(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of instance `index`: SeedSequence([seed, split, index]), so that neighbouring seeds share nothing."""
    return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))
