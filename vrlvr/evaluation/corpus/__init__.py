"""Videos that must never be accepted, and videos that must be: what verifiers are measured on.

    scene = SCENES["small"]; puzzle = puzzle_of("maze", "small", 0); rng = np.random.default_rng(0)
    video = attacks("maze")["end_jump"](puzzle, scene, rng)     # uint8 (T, Y, X, 3), no solution
    video = honest("maze")["blur"](puzzle, scene, rng)          # a solution; its height and width may differ from the scene's

Read every video as one of a board that was drawn at scene.height x scene.width (`verify_many(..., size=...)`).
"""

from vrlvr.evaluation.corpus import (
    common_pixels,
    common_states,
    flow_free_attacks,
    honest_videos,
    maze_attacks,
    sokoban_attacks,
)
from vrlvr.evaluation.corpus.making import of_states
from vrlvr.evaluation.corpus.scene import SCENES, Maker, Scene, Video, puzzle_of

_ROOMS = {"maze": maze_attacks, "flowfree": flow_free_attacks, "sokoban": sokoban_attacks}

__all__ = ["SCENES", "Maker", "Scene", "Video", "attacks", "honest", "puzzle_of"]


def attacks(task: str) -> dict[str, Maker]:
    """The attacks on a task by name. None of their videos is a solution, by construction."""
    room = _ROOMS[task]
    in_states = {attack.__name__: of_states(attack) for attack in (*common_states.STATES, *room.STATES)}
    return in_states | {attack.__name__: attack for attack in (*common_pixels.PIXELS, *room.PIXELS)}


def honest(task: str) -> dict[str, Maker]:
    """The honest videos of a task by name: lawful solutions, played and recorded in many ways."""
    return honest_videos.makers(task)
