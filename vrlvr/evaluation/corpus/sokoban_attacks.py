"""Attacks on Sokoban: boxes that move as no push moves them."""

import numpy as np

from vrlvr.evaluation.corpus import walker_attacks, walkers
from vrlvr.evaluation.corpus.making import Rng, StateAttack, solution
from vrlvr.evaluation.corpus.scene import Maker, Scene, States, Video, cell_box, draw, plan
from vrlvr.evaluation.corpus.walkers import GOAL, WALL, Thing, a_floor, beeline, fitted, labelled, path_of, with_ground
from vrlvr.puzzles.grid import OFF_BOARD, OPPOSITE, around, distances_from, neighbours
from vrlvr.puzzles.sokoban import LOOKS, Puzzle
from vrlvr.puzzles.sokoban.puzzle import step
from vrlvr.puzzles.sokoban.render import AGENT, BOX
from vrlvr.puzzles.sokoban.solve import search


def _start(puzzle: Puzzle) -> Thing:
    return walkers.start_of(puzzle)


def _played(puzzle: Puzzle, scene: Scene, things: list[Thing]) -> States:
    return fitted(labelled(puzzle, things), scene)


def _to(thing: Thing, agent: int | None = None, boxes: tuple[int, ...] | None = None) -> Thing:
    return Thing(
        thing.ground,
        thing.agents if agent is None else (agent,),
        thing.boxes if boxes is None else tuple(sorted(boxes)),
    )


def _approach(puzzle: Puzzle, thing: Thing, cell: int) -> list[Thing]:
    """The agent walks lawfully to a cell, or jumps there if no way leads to it; the thing itself comes first."""
    free = bytes(label != WALL and at not in thing.boxes for at, label in enumerate(thing.ground.tolist()))
    distances = distances_from(cell, free, puzzle.rows, puzzle.cols)
    at, walked = thing.agents[0], [thing]
    if at not in distances:
        return [thing, _to(thing, agent=cell)]
    while at != cell:
        at = min((to for to in around(puzzle.rows, puzzle.cols)[at] if to in distances), key=distances.__getitem__)
        walked.append(_to(thing, agent=at))
    return walked


def _finish(puzzle: Puzzle, thing: Thing) -> list[Thing]:
    """The thing, and a lawful way on to a solved state; the plan's end alone where there is none."""
    moves = None
    if len(thing.boxes) == len(puzzle.targets):
        moves = search(puzzle.ground, thing.agents[0], thing.boxes, puzzle.rows, puzzle.cols, max_states=2000)
    if moves is None:
        return [thing, path_of(puzzle)[-1]]
    state, things = (thing.agents[0], thing.boxes), [thing]
    for move in moves:
        after = step(puzzle, state, move)
        assert after is not None
        state = after
        things.append(_to(thing, *state))
    return things


def boxes_teleport(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The agent walks as planned, or stands, and the boxes are on the targets at once."""
    path = path_of(puzzle)
    kept = path[: rng.integers(1, len(path))]
    clear = next((t.agents[0] for t in reversed(kept) if t.agents[0] not in puzzle.targets), a_floor(puzzle, rng))
    return _played(puzzle, scene, [*kept, _to(kept[-1], agent=clear, boxes=puzzle.targets)])


def boxes_walk_alone(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Boxes move cell by cell to the targets while the agent stands still."""
    things = [_start(puzzle)]
    for i, target in enumerate(puzzle.targets):
        for cell in beeline(puzzle, puzzle.boxes[i], target, rng):
            boxes = list(things[-1].boxes)
            boxes[min(i, len(boxes) - 1)] = cell
            things.append(Thing(things[0].ground, things[0].agents, tuple(boxes)))
    return _played(puzzle, scene, things)


def box_pulled(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The agent goes beside a box and draws it along; then it goes on lawfully."""
    ways = neighbours(puzzle.rows, puzzle.cols)
    things = [_start(puzzle)]
    box = int(rng.choice(puzzle.boxes))
    rest = tuple(b for b in puzzle.boxes if b != box)
    options = []
    for way in ways.values():
        beside = way[box]
        beyond = OFF_BOARD if beside == OFF_BOARD else way[beside]
        if OFF_BOARD not in (beside, beyond) and not {beside, beyond} & {*rest}:
            options.append((beside, beyond))
    beside, beyond = options[rng.integers(len(options))]
    things = _approach(puzzle, things[0], beside)
    return _played(puzzle, scene, things + _finish(puzzle, _to(things[0], agent=beyond, boxes=(*rest, beside))))


def boxes_merge(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A box vanishes on its way, or into another box; those left stand on targets."""
    path = path_of(puzzle)
    first = int(rng.integers(1, len(path)))
    gone = int(rng.integers(len(puzzle.boxes)))
    things = [_to(t, boxes=t.boxes[:gone] + t.boxes[gone + 1 :]) for t in path[first:]]
    return _played(puzzle, scene, path[:first] + things)


def box_doubled(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A copy of a box appears on a target, or stays where the box was."""
    path = path_of(puzzle)
    first = int(rng.integers(1, len(path)))
    extra = int(rng.choice([*puzzle.targets, *puzzle.boxes]))
    things = [_to(t, boxes=(*{*t.boxes, extra},)) for t in path[first:]]
    return _played(puzzle, scene, path[:first] + things)


def two_boxes_pushed_at_once(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The agent pushes a row of two boxes; a second box comes up where there is only one. Then on."""
    ways = neighbours(puzzle.rows, puzzle.cols)
    box = int(rng.choice(puzzle.boxes))
    rows = []
    for name, way in ways.items():
        ahead, agent = way[box], ways[OPPOSITE[name]][box]
        if OFF_BOARD not in (ahead, agent) and way[ahead] != OFF_BOARD:
            rows.append((agent, ahead, way[ahead]))
    if not rows:  # a box in a corner: both are shoved along the edge by the agent from where it stands
        rows = [(puzzle.agent, a_floor(puzzle, rng), a_floor(puzzle, rng))]
    agent, ahead, beyond = rows[rng.integers(len(rows))]
    rest = tuple(b for b in puzzle.boxes if b not in (box, ahead))[: max(0, len(puzzle.boxes) - 2)]
    start = _start(puzzle)
    before, after = _to(start, agent, (*rest, box, ahead)), _to(start, box, (*rest, ahead, beyond))
    return _played(puzzle, scene, [*_approach(puzzle, start, agent), before, *_finish(puzzle, after)])


def through_a_box(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The agent walks over a box, which stays; then it goes on lawfully."""
    box, start = int(rng.choice(puzzle.boxes)), _start(puzzle)
    free = [cell for cell in around(puzzle.rows, puzzle.cols)[box] if puzzle.ground[cell] != WALL]
    onto, off = (int(cell) for cell in rng.choice(free, 2))
    over = [*_approach(puzzle, start, onto), _to(start, agent=box)]
    return _played(puzzle, scene, over + _finish(puzzle, _to(start, agent=off)))


def agent_through_walls(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The agent crosses a wall at some step of the plan and is back for the next one."""
    path = path_of(puzzle)
    first = int(rng.integers(len(path)))
    wall = walkers.a_wall(puzzle, rng)
    detour = [_to(path[first], agent=cell) for cell in beeline(puzzle, path[first].agents[0], wall, rng)]
    return _played(puzzle, scene, path[: first + 1] + detour + path[first + 1 :] + path[-1:])


def box_through_a_wall(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A box goes straight to its target by way of a wall, the agent behind it."""
    start, wall = _start(puzzle), walkers.a_wall(puzzle, rng)
    way = [*beeline(puzzle, puzzle.boxes[0], wall, rng), *beeline(puzzle, wall, puzzle.targets[0], rng)]
    things, behind = [start], puzzle.boxes[0]
    for cell in way:
        things.append(_to(start, agent=behind, boxes=(*puzzle.boxes[1:], cell)))
        behind = cell
    return _played(puzzle, scene, things[:-1] + _finish(puzzle, things[-1]))


def targets_moved_to_boxes(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The targets jump under the boxes."""
    start = _start(puzzle)
    ground = np.where(start.ground == GOAL, walkers.FLOOR, start.ground).astype(np.int8)
    moved = with_ground(Thing(ground, start.agents, start.boxes), start.boxes, GOAL)
    return _played(puzzle, scene, [start] * int(rng.integers(1, 3)) + [moved])


def targets_added_under_boxes(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """New targets appear under the boxes, the old ones stay."""
    start = _start(puzzle)
    return _played(puzzle, scene, [start] * int(rng.integers(1, 3)) + [with_ground(start, start.boxes, GOAL)])


def all_boxes_gone(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """No box is off a target any more: there are none."""
    path = path_of(puzzle)
    first = int(rng.integers(1, len(path)))
    return _played(puzzle, scene, path[:first] + [_to(t, boxes=()) for t in path[first:]])


def boxes_become_walls(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Boxes turn to wall where they stand."""
    start = _start(puzzle)
    stone = with_ground(_to(start, boxes=()), start.boxes, WALL)
    return _played(puzzle, scene, [start, stone])


def solution_left(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Solved, then a box is drawn off its target again, at the end or for a moment."""
    path = path_of(puzzle)
    before = next(t for t in reversed(path) if t.boxes != path[-1].boxes)
    return _played(puzzle, scene, path + [before] + path[-1:] * int(rng.integers(2)))


def agent_and_box_change_places(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Agent and box swap at some time; then the plan goes on."""
    path = path_of(puzzle)
    first = int(rng.integers(len(path) - 1))
    box = int(rng.choice(path[first].boxes))
    rest = tuple(b for b in path[first].boxes if b != box)
    swapped = _to(path[first], agent=box, boxes=(*rest, path[first].agents[0]))
    return _played(puzzle, scene, [*path[: first + 1], swapped, *path[first + 1 :]])


def targets_painted_as_done(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
    """Nobody moves; all of each target takes the colour of a box, fully or by half."""
    video = draw(puzzle, scene, np.repeat(plan(puzzle)[:1], scene.num_frames, axis=0))
    whole = rng.random() < 0.5
    for target in puzzle.targets:
        rows, columns = cell_box(puzzle, scene, target)
        cell = video[1:, rows, columns].astype(np.float32)
        box = LOOKS[BOX, 1].astype(np.float32)
        video[1:, rows, columns] = np.broadcast_to(box, cell.shape) if whole else (cell + box) / 2
    return video


def boxes_recoloured(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
    """The solution with boxes in the agent's colour, after the first frame."""
    states = solution(puzzle, scene)
    states[1:] = np.where(np.isin(states[1:], (BOX, BOX + 1)), states[1:] + AGENT - BOX, states[1:])
    return draw(puzzle, scene, states)


STATES: tuple[StateAttack, ...] = (
    *walker_attacks.STATES,
    boxes_teleport,
    boxes_walk_alone,
    box_pulled,
    boxes_merge,
    box_doubled,
    two_boxes_pushed_at_once,
    through_a_box,
    agent_through_walls,
    box_through_a_wall,
    targets_moved_to_boxes,
    targets_added_under_boxes,
    all_boxes_gone,
    boxes_become_walls,
    solution_left,
    agent_and_box_change_places,
)
PIXELS: tuple[Maker, ...] = (*walker_attacks.PIXELS, targets_painted_as_done, boxes_recoloured)
