"""How a maze is put to a language model: as text or as the first frame's image, and the format in which it is to answer."""

import base64
from typing import Any, Literal

from vrlvr.evaluation.benchmark import Item
from vrlvr.evaluation.providers.system import png_of

Shown = Literal["text", "image"]

_TEXT = """\
Below is a maze of {rows} rows and {cols} columns. Each character is one square cell: # is a wall, . is floor, S is the start
(floor) and G is the goal (floor).

{board}

"""
_IMAGE = """\
The image shows a maze of {rows} rows and {cols} columns of square cells, seen from above, on a dark background. Dark grey cells
are walls, light cells are floor. The blue disc stands on the start; the green cell is the goal.

"""
_TASK = """\
Find a way from the start to the goal. A move goes one cell up (U), down (D), left (L) or right (R), never into a wall and never
off the board. The way ends on the goal.

You may reason first. The last line of your answer must be the moves in exactly this format, and nothing else:
MOVES: U R R D"""


def messages(item: Item, shown: Shown) -> list[dict[str, Any]]:
    """The chat messages (OpenAI's format) that ask a maze."""
    board = item.puzzle.to_json()["board"]
    size = {"rows": item.puzzle.rows, "cols": item.puzzle.cols}
    if shown == "text":
        return [{"role": "user", "content": _TEXT.format(**size, board="\n".join(board)) + _TASK}]
    png = base64.b64encode(png_of(item.first_frame)).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}
    return [{"role": "user", "content": [{"type": "text", "text": _IMAGE.format(**size) + _TASK}, picture]}]
