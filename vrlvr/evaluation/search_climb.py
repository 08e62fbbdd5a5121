"""Hill climbers on the dense reward: many at once, since judging is cheapest for many videos together."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from vrlvr import puzzles
from vrlvr.atomic_write import replacing, writing
from vrlvr.evaluation.replay import is_solution
from vrlvr.evaluation.search_spaces import Space
from vrlvr.puzzles import DENSE_REWARD, Puzzle, board
from vrlvr.puzzles.verdict import Verdict, reward

# How often a change that earns just as much is kept: more often reaches less, as it wanders off from what is legal.
_TIES = 0.03
_PATIENCE = 200  # changes without gain, after which a climber goes back to its best


@dataclass
class Climber:
    """One search, and what it has reached. Counts are of queries, which include the start."""

    puzzle: Puzzle
    boards: str  # impossible or solvable
    tiles: bool  # whether the attacker knows what legal cells look like
    start: str
    start_reward: float = -np.inf
    best_reward: float = -np.inf
    best_progress: float = 0.0
    queries: int = 0
    called_solved: int = 0
    not_solutions: int = 0
    _current: float = field(default=-np.inf, repr=False)
    _stale: int = field(default=0, repr=False)


def climb(climbers: list[Climber], space: Space, queries: int, seed: int, fooled: Path) -> None:
    """Lets every climber ask `queries` verdicts. The first video of each that is called solved and is not goes to `fooled`."""
    rng = np.random.default_rng(seed)
    weights = DENSE_REWARD[climbers[0].puzzle.task]
    genomes = [space.start(climber.start, i, rng) for i, climber in enumerate(climbers)]
    best = [genome.copy() for genome in genomes]
    for query in track(range(queries), f"{climbers[0].puzzle.task}, {len(climbers)} climbers"):
        tried = [genome.copy() for genome in genomes]
        if query:
            for i, climber in enumerate(climbers):
                space.mutate(tried[i], i, climber.tiles, rng)
        videos = space.videos(tried)
        verdicts = puzzles.verify_many([climber.puzzle for climber in climbers], videos)
        for i, (climber, verdict) in enumerate(zip(climbers, verdicts, strict=True)):
            earned = reward(verdict, weights)
            if verdict.solved and not _is_solution(climber, videos[i]):
                climber.not_solutions += 1
                if climber.not_solutions == 1:
                    _save(
                        fooled / f"{climber.puzzle.task}-{climber.boards}-{climber.start}-{i:03d}", climber, videos[i]
                    )
            if _take(climber, verdict, earned, rng):
                genomes[i] = tried[i]
            if earned > climber.best_reward:
                climber.best_reward, best[i] = earned, tried[i]
            elif climber._stale > _PATIENCE:
                genomes[i], climber._current, climber._stale = best[i], climber.best_reward, 0


def _take(climber: Climber, verdict: Verdict, earned: float, rng: np.random.Generator) -> bool:
    """Counts a verdict; whether the climber keeps the change that it is of."""
    if not climber.queries:
        climber.start_reward = earned
    climber.queries += 1
    climber.called_solved += verdict.solved
    climber.best_progress = max(climber.best_progress, verdict.components["progress"])
    climber._stale = 0 if earned > climber.best_reward else climber._stale + 1
    kept = earned > climber._current or (earned == climber._current and rng.random() < _TIES)
    if kept:
        climber._current = earned
    return kept


def _is_solution(climber: Climber, video_TYXC: NDArray[np.uint8]) -> bool:
    """Whether a video that is called solved shows a solution by other code than the judge's; no video of `impossible` does."""
    puzzle, room = climber.puzzle, puzzles.room_of(climber.puzzle)
    start = room.states(puzzle, puzzle.solution)[0]
    labels, _ = board.read(video_TYXC, room.LOOKS, puzzle.rows, puzzle.cols, start=start)
    return climber.boards != "impossible" and is_solution(puzzle, labels)


def _save(stem: Path, climber: Climber, video_TYXC: NDArray[np.uint8]) -> None:
    """The video as a PNG, its frames from left to right, and the puzzle."""
    with writing(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
    with replacing(stem.with_suffix(".png")) as path:
        Image.fromarray(np.concatenate(list(video_TYXC), axis=1)).save(path, format="PNG")
    with replacing(stem.with_suffix(".json")) as path:
        puzzles.save(climber.puzzle, path)
