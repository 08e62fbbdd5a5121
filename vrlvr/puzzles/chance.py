"""Random draws that are the same on every machine and for every version of numpy and Python."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

Draw = Callable[[], float]
Option = TypeVar("Option")


def stable_draws(rng: np.random.Generator) -> Draw:
    """A function that draws from [0, 1), seeded with the generator's raw bits.

    `random.Random.random` is the one method of either library whose values are promised never to change.
    """
    return random.Random(int(rng.bit_generator.random_raw())).random


def pick(draw: Draw, options: Sequence[Option]) -> Option:
    """One of the options, all alike."""
    return options[int(draw() * len(options))]
