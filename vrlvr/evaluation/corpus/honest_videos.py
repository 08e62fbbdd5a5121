"""Honest videos: any lawful play, recorded in any of these ways."""

import numpy as np

from vrlvr.evaluation.corpus import recordings
from vrlvr.evaluation.corpus.plays import PLAYS, Play, any_play, checked
from vrlvr.evaluation.corpus.recordings import Filter, Retiming
from vrlvr.evaluation.corpus.scene import Maker, Scene, Video
from vrlvr.puzzles import Puzzle

_WAN_LIKE: tuple[Filter, ...] = (recordings.detail_lost, recordings.smeared)
# What is done to any play, by name: changes in time, then in pixels.
_RECORDINGS: dict[str, tuple[tuple[Retiming, ...], tuple[Filter, ...]]] = {
    "other_fps": ((recordings.other_fps,), ()),
    "dropped_frame": ((recordings.dropped_frame,), ()),
    "doubled_frame": ((recordings.doubled_frame,), ()),
    "blur": ((), (recordings.blur,)),
    "darker": ((), (recordings.darker,)),
    "brighter": ((), (recordings.brighter,)),
    "hue_drift": ((), (recordings.hue_drift,)),
    "grain": ((), (recordings.grain,)),
    "at_another_size": ((), (recordings.at_another_size,)),
    "scaled_and_back": ((), (recordings.scaled_and_back,)),
    "wan_like": ((), _WAN_LIKE),
    "h264": ((), (recordings.h264,)),
    "blur_darker_h264": ((), (recordings.blur, recordings.darker, recordings.h264)),
    "brighter_blur_grain": ((), (recordings.brighter, recordings.blur, recordings.grain)),
    "fps_scaled_h264": ((recordings.other_fps,), (recordings.scaled_and_back, recordings.h264)),
    "darker_wan_like": ((), (recordings.darker, *_WAN_LIKE)),
    "hue_drift_h264": ((), (recordings.hue_drift, recordings.h264)),
    "dropped_and_doubled_wan_like": ((recordings.dropped_frame, recordings.doubled_frame), _WAN_LIKE),
}


def makers(task: str) -> dict[str, Maker]:
    """Plays as they are, and any of them through each of the recordings, by name; the same for every task."""
    plain = {play.__name__: _maker(play, (), ()) for play in PLAYS}
    return plain | {name: _maker(any_play, *how) for name, how in _RECORDINGS.items()}


def _maker(play: Play, retimings: tuple[Retiming, ...], filters: tuple[Filter, ...]) -> Maker:
    def make(puzzle: Puzzle, scene: Scene, rng: np.random.Generator) -> Video:
        states = checked(puzzle, play(puzzle, scene, rng))
        for retiming in retimings:
            states = checked(puzzle, retiming(puzzle, states, rng))
        return recordings.recorded(puzzle, scene, states, filters, rng)

    make.__doc__ = " ".join((play.__doc__ or "", *(how.__doc__ or "" for how in (*retimings, *filters))))
    return make
