"""The published results that ours stand beside: as printed in arXiv 2605.15458, never measured here."""

import re

from vrlvr.evaluation.metrics import Row
from vrlvr.evaluation.vbvr_rows import CATEGORIES, TASK, VbvrRow

# Precision, recall, F1, success rate in percent, on Maze / FlowFree / Sokoban. Kept as printed, also where `consistency`
# finds that a number does not follow from the others.
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
"""
# Language models were only tried on Maze.
_LANGUAGE_MODELS = """
GPT 4o           | 11.7 13.0 12.3  0.0
GPT 5.5 Pro      | 76.0 70.1 72.9 66.0
Gemini 2.5 Flash | 11.2 10.5 10.9  0.0
Gemini 3.1 Pro   | 26.8 27.0 26.9 23.0
"""
# VBVR's out-of-domain set: average, then the five categories in the order of CATEGORIES.
_VBVR = """
CogVideoX1.5     | 26.2 28.1 23.5 25.0 25.4 28.2
VideoRLVR        | 60.2 65.5 62.0 59.7 58.8 58.2
Wan2.2-I2V-A14B  | 32.9 40.5 30.8 34.3 23.6 30.7
VBVR-Wan2.2      | 61.0 76.8 57.2 54.7 61.8 61.5
"""
# Other names of the published systems: what hubs and services call them. Compared without case and without what is no letter
# or digit; the owner of a repository ("Wan-AI/") and a bracket with what follows ("(text), lenient") do not count either.
ALIASES = {
    "Sora 2": ("sora-2-2025-10-06", "OpenAI Sora 2"),
    "Kling V3": ("Kling 3", "Kling 3.0", "kling-v3-0"),
    "Veo 3.1": ("veo-3.1-generate-preview", "veo-3.1-generate-001", "Google Veo 3.1"),
    "CogVideoX1.5": ("CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V"),
    "HunyuanVideo": ("HunyuanVideo-I2V", "HunyuanVideo-I2V-Diffusers"),
    "Wan2.2-TI2V-5B": ("Wan2.2-TI2V-5B-Diffusers",),
    "Wan2.2-I2V-A14B": ("Wan2.2-I2V-A14B-Diffusers",),
}


def published_rows() -> list[Row]:
    """The published puzzle tables as rows of source `published`: no interval and no number of puzzles is known."""
    return [
        _row(system.strip(), task, *map(float, cells.split()))
        for system, *groups in (line.split("|") for line in (_TABLE + _LANGUAGE_MODELS.lstrip()).strip().splitlines())
        for task, cells in zip(_TASKS, groups, strict=False)
    ]


def published_vbvr_rows() -> list[VbvrRow]:
    """The published table of VBVR's out-of-domain set, likewise."""
    return [
        _vbvr_row(system.strip(), *map(float, cells.split()))
        for system, cells in (line.split("|") for line in _VBVR.strip().splitlines())
    ]


def language_models() -> list[str]:
    """The published systems that answer in text."""
    return [line.split("|")[0].strip() for line in _LANGUAGE_MODELS.strip().splitlines()]


def canonical_name(system: str) -> str:
    """The published name of a system that goes by one of its aliases; any other name as it is."""
    return _CANONICAL.get(_key(system), system)


def _key(system: str) -> str:
    """What two spellings of one name share."""
    name = system.split("(")[0].rsplit("/", 1)[-1]
    return re.sub(r"[\W_]+", "", name.casefold())


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


def _vbvr_row(system: str, average: float, *scores: float) -> VbvrRow:
    return VbvrRow(
        system=system,
        task=TASK,
        average=average,
        average_ci95=None,
        categories=dict(zip(CATEGORIES, scores, strict=True)),
        num_tasks=None,
        num_videos=None,
        source="published",
    )


_CANONICAL = {
    _key(name): system
    for system in dict.fromkeys([row["system"] for row in (*published_rows(), *published_vbvr_rows())])
    for name in (system, *ALIASES.get(system, ()))
}
