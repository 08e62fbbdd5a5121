"""What a verifier says of one video."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The judgement of one video of one puzzle.

    solved: every transition legal, the first frame the puzzle itself, the solved state reached and held to the end.
    components: the dense terms, each in [0, 1]; their weights are configured, see `reward`.
    broken_rule / frame: the first rule that the video breaks and the frame that shows it; None where none is broken.
    precision / recall / f1: overlap with the planner's solution, in [0, 1]; the unit is each room's own.
    """

    solved: bool
    components: Mapping[str, float]
    broken_rule: str | None
    frame: int | None
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        return f1(self.precision, self.recall)


def f1(precision: float, recall: float) -> float:
    """Harmonic mean; 0 where both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def overlap(generated: AbstractSet, reference: AbstractSet) -> tuple[float, float]:
    """Precision and recall of a set against a reference; a precision over nothing is 0."""
    common = len(generated & reference)
    return (common / len(generated) if generated else 0.0), (common / len(reference) if reference else 0.0)


def reward(verdict: Verdict, weights: Mapping[str, float]) -> float:
    """The configured sum of the components. `{"solved": 1.0}` is the sparse reward.

    Raises KeyError for a weight whose component the verifier does not give.
    """
    return sum(weight * verdict.components[name] for name, weight in weights.items())
