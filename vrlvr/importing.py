"""`vrlvr import`: puzzles that others made, as a data set of test puzzles for `vrlvr eval`.

OUT/test/<task>/00000.{mp4,png,json}, OUT/metadata_{all,<task>}.csv    as vrlvr.dataset has them
OUT/manifest.json                                                     the arguments, and where each puzzle comes from
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rich.progress import track

from vrlvr import puzzles
from vrlvr.atomic_write import replacing_folder, write_text
from vrlvr.dataset import Instance, frames_per_move, write_files, write_metadata
from vrlvr.errors import UserError
from vrlvr.foreign import mazes, numberlink, sokoban
from vrlvr.foreign.level import Level
from vrlvr.puzzles import Puzzle, board
from vrlvr.puzzles.flow_free.puzzle import MAX_CELLS_PER_MOVE
from vrlvr.puzzles.flow_free.render import num_moves

Format = Literal["boxoban", "numberlink", "maze"]
MODULES = {"boxoban": sokoban, "numberlink": numberlink, "maze": mazes}
MAX_FILE_BYTES = 4 * 2**20
MAX_LEVELS = 10_000
MAX_MESSAGE = 300
SUFFIXES = (".txt", ".xsb", ".sok")  # of the files that are read in a folder


@dataclass(frozen=True)
class Source:
    """A level, its file, and how messages name it: `levels.txt:12`."""

    name: str
    level: Level


def import_puzzles(
    files: Sequence[Path],
    out: Path,
    format: Format,
    height: int = 480,
    width: int = 832,
    num_frames: int = 81,
    skip: bool = False,
) -> None:
    """Makes the data set `out` of all levels in files and folders (their .txt, .xsb and .sok files), in their order.

    out: a folder that does not exist yet, or is empty. format: boxoban reads any Sokoban levels in XSB; numberlink also
    reads the solutions beside them; maze reads walls drawn as cells, as mazelib prints them. num_frames: 1 + 4k; a move
    lasts 4 frames, or as many as let the longest plan fit. skip: leave out levels that cannot be used, each told in a
    line, instead of stopping at the first. Raises UserError.
    """
    if format not in MODULES:
        raise UserError(f"format={format!r} is unknown; use one of {', '.join(get_args(Format))}")
    if num_frames < 5 or num_frames % 4 != 1:
        raise UserError(f"num_frames={num_frames} must be 1 + 4k and at least 5, as the video codec needs")
    if height % 2 or width % 2:
        raise UserError(f"{height}x{width} has an odd side, which H.264 cannot hold; use even height and width")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another folder")
    found: list[Puzzle] = []
    names: list[str] = []
    left_out = []
    for source in track(list(_sources(files, format)), "reading and solving"):
        try:
            puzzle = _fitted(MODULES[format].puzzle_of(source.level), num_frames)
            board.layout(puzzle.rows, puzzle.cols, height, width)
        except ValueError as error:
            told = f"{source.name}: {str(error)[:MAX_MESSAGE]}"
            if not skip:
                raise UserError(f"{told}; mend it, or leave such levels out with --skip") from error
            print(f"left out {told}")
            left_out.append(told)
            continue
        found.append(puzzle)
        names.append(source.name)
    if not found:
        raise UserError(f"no level in {', '.join(map(str, files))} can be used")
    per_move = _frames_per_move(found, num_frames)
    task = found[0].task
    instances = [Instance("test", task, index) for index in range(len(found))]
    manifest = {
        "format": format, "height": height, "width": width, "num_frames": num_frames, "frames_per_move": per_move,
        "tasks": [task], "num_train": 0, "num_test": len(found), "sources": names, "left_out": left_out,
    }  # fmt: skip
    with replacing_folder(out) as folder:
        (folder / "test" / task).mkdir(parents=True)
        for instance, puzzle in zip(track(instances, f"writing {out}"), found, strict=True):
            write_files(folder / instance.stem, puzzle, height, width, num_frames, per_move)
        write_metadata(folder, [task], instances)
        write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _sources(files: Sequence[Path], format: Format) -> Iterator[Source]:
    """All levels. Raises UserError for a file that cannot be read or holds none, and for too many of them."""
    count = 0
    for path in _expanded(files):
        levels = MODULES[format].levels(_read(path))
        if not levels:
            raise UserError(f"{path} holds no board in the format {format}; see `vrlvr import --help` for the others")
        if solution := _solution_beside(path) if format == "numberlink" else None:
            if len(levels) > 1:
                raise UserError(f"{path} holds {len(levels)} boards, so {solution} fits none; give each its own file")
            levels = [replace(levels[0], solution=_read(solution))]
        count += len(levels)
        if count > MAX_LEVELS:
            raise UserError(f"the files hold more than {MAX_LEVELS} levels; import them in several folders")
        name = path.name if path.name.isprintable() else ascii(path.name)
        yield from (Source(f"{name}:{level.line}", level) for level in levels)


def _expanded(files: Sequence[Path]) -> Iterator[Path]:
    for path in files:
        if path.is_dir():
            try:
                inside = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES and entry.is_file())
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror}); name a folder that can") from error
            if not inside:
                raise UserError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}; name the files")
            yield from inside
        else:
            yield path


def _solution_beside(path: Path) -> Path | None:
    """NAME.sol.json or NAME.txt.sol.json of NAME.txt, both of which the package numberlink reads."""
    beside = (path.with_suffix(".sol.json"), path.with_name(f"{path.name}.sol.json"))
    return next((candidate for candidate in beside if candidate.is_file()), None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES} bytes; split it")
        return raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); give a text file of levels") from error


def _fitted(puzzle: Puzzle, num_frames: int) -> Puzzle:
    """The puzzle, a FlowFree one with as many cells a move as fit its longest path. Raises ValueError if it cannot fit."""
    if isinstance(puzzle, puzzles.flow_free.Puzzle):
        longest = max(map(len, puzzle.solution))
        moves = (num_frames - 1) // frames_per_move(num_frames)
        puzzle = replace(puzzle, cells_per_move=min(MAX_CELLS_PER_MOVE, num_moves(longest, moves)))
        if num_moves(longest, puzzle.cells_per_move) < 2:
            raise ValueError("every path is drawn in a single move, so that a jump to the end would solve it")
    if (moves := _num_moves(puzzle)) > num_frames - 1:
        raise ValueError(f"its plan of {moves} moves needs --num_frames {1 + 4 * -(-moves // 4)}, not {num_frames}")
    return puzzle


def _num_moves(puzzle: Puzzle) -> int:
    if isinstance(puzzle, puzzles.flow_free.Puzzle):
        return num_moves(max(map(len, puzzle.solution)), puzzle.cells_per_move)
    return len(puzzle.solution)


def _frames_per_move(found: Sequence[Puzzle], num_frames: int) -> int:
    """Frames that a move lasts in all of the videos: as in other data sets, or fewer where the longest plan needs it."""
    return min(frames_per_move(num_frames), (num_frames - 1) // max(map(_num_moves, found)))
