"""The published results that ours stand beside: as printed in arXiv 2605.15458, never measured here."""

from vrlvr.evaluation.metrics import Row

# Precision, recall, F1, success rate in percent, on Maze / FlowFree / Sokoban. Language models were only tried on Maze.
# The F1 of VideoRLVR on Sokoban is kept as printed (29.4), although its precision and recall give 18.3.
_TASKS = ("maze", "flowfree", "sokoban")
_TABLE = """
Sora 2           | 15.8 17.2 16.5  3.1 | 10.8  5.1  5.8 0.0 |  8.5  4.8  5.4 0.0
Kling V3         | 24.8 15.7 19.2 23.5 | 18.8  2.7  4.7 0.0 |  5.7  2.7  3.7 0.0
Veo 3.1          | 22.8 18.1 20.2 26.0 | 23.9  4.7  7.5 4.0 | 22.2  6.0  9.4 0.0
CogVideoX1.5     | 13.3 10.8 11.9  0.0 | 18.7  2.2  3.9 0.0 |  3.2  0.3  0.5 0.0
HunyuanVideo     | 17.3 11.4 13.8  2.2 | 12.5  2.9  4.8 0.0 |  8.2  2.7  3.2 0.0
Wan2.2-TI2V-5B   | 18.3 12.2 14.6  0.0 | 17.4  2.0  3.4 0.0 |  4.1  0.7  1.0 0.0
Wan-R1           | 20.9 65.6 31.7 31.9 | 20.9  3.6  6.1 0.0 |  7.7  2.1  3.3 0.0
VBVR-Wan2.2      | 62.7 77.8 69.4 60.8 | 17.9  5.6  8.5 1.7 | 16.2  1.7  3.1 0.0
SFT epoch 5      | 80.2 83.0 81.6 66.1 | 42.8 42.2 42.4 2.4 | 33.6 11.9 17.6 2.9
SFT epoch 10     | 80.4 85.1 82.7 69.0 | 43.1 42.5 42.8 2.5 | 32.8 11.6 17.1 2.7
VideoRLVR        | 82.1 86.9 84.4 72.2 | 44.3 43.8 44.0 7.9 | 34.0 12.5 29.4 6.1
GPT 4o           | 11.7 13.0 12.3  0.0
GPT 5.5 Pro      | 76.0 70.1 72.9 66.0
Gemini 2.5 Flash | 11.2 10.5 10.9  0.0
Gemini 3.1 Pro   | 26.8 27.0 26.9 23.0
"""


def published_rows() -> list[Row]:
    """The published table as rows of source `published`: no interval and no number of puzzles is known."""
    return [
        _row(system.strip(), task, *map(float, cells.split()))
        for system, *groups in (line.split("|") for line in _TABLE.strip().splitlines())
        for task, cells in zip(_TASKS, groups, strict=False)
    ]


def _row(system: str, task: str, precision: float, recall: float, f1: float, success_rate: float) -> Row:
    return Row(
        system=system,
        task=task,
        precision=precision,
        recall=recall,
        f1=f1,
        success_rate=success_rate,
        success_rate_ci95=None,
        num_puzzles=None,
        source="published",
    )
