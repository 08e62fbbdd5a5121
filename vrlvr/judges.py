"""Who judges an update's samples: the verifier, by the videos of the configured decoder; and those who look at its verdicts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vrlvr.build import open_reward_decoder
from vrlvr.config import Config, reward_weights
from vrlvr.distributed import World
from vrlvr.scoring import Scorer, Scores
from vrlvr.second_opinion import SecondOpinion
from vrlvr.source import Source

State = dict[str, Any]  # JSON values


class Judges:
    """scorer: gives rewards. Some are looked at again: by the audit of the small reward decoder, if one is used, and by the
    second verifier.
    """

    def __init__(self, config: Config, source: Source, world: World, say: Callable[[str], None]) -> None:
        """Raises UserError if the reward decoder is of another VAE."""
        self._audited = audited = open_reward_decoder(config, source, world, say)
        decoder, size, reread = (
            (source.codec, None, None) if audited is None else (audited, audited.size, audited.reread)
        )
        self._second = SecondOpinion(decoder, size, config.grpo.second_opinion, config.seed, world, say)
        self.scorer = Scorer(self._second, reward_weights(config), size, world.device, reread)

    def expect(self, update: int, num_samples: int) -> None:
        """To be called before the update's first samples, of which this process makes so many, come to the scorer."""
        self._second.expect(update, num_samples)

    def look(self, update: int, first_BC1HW: Tensor, latents_BCFHW: Tensor, scores: Scores) -> dict[str, list[float]]:
        """Looks at some of the scores once more; values to log, by name. All processes call it."""
        found: dict[str, float] = {}
        if self._audited is not None:
            found |= self._audited.audit(update, scores.puzzles, first_BC1HW, latents_BCFHW, scores.verdicts)
        found |= self._second.compare(update, scores.puzzles, scores.verdicts, scores.reward_B)
        return {name: [value] for name, value in found.items()}

    def states(self) -> tuple[State, State]:
        """What the audit and the second verifier have found so far."""
        return {} if self._audited is None else self._audited.state(), self._second.state()

    def load_states(self, audit: State, second_opinion: State) -> None:
        """Takes up `states`; an empty one is that of a beginning."""
        if self._audited is not None and audit:
            self._audited.load_state(audit)
        if second_opinion:
            self._second.load_state(second_opinion)
