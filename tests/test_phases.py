"""Phases are seen by torch.profiler, by NVTX once CUDA is in use, and left in order when their body raises."""

import time
from contextlib import contextmanager

import pytest
import torch

from vrlvr.phases import phase


def test_the_profiler_sees_nested_phases() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, phase("replay"):
        with phase("backward"):
            torch.ones(2).sum()
        torch.ones(2).sum()
    events = {event.name: event.time_range for event in profile.events() if event.name in ("replay", "backward")}
    assert events["replay"].start <= events["backward"].start
    assert events["backward"].end <= events["replay"].end


def test_nvtx_ranges_are_pushed_and_popped_only_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    @contextmanager
    def fake_range(name: str):
        calls.append(f"push {name}")
        try:
            yield
        finally:
            calls.append("pop")

    monkeypatch.setattr(torch.cuda.nvtx, "range", fake_range)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with phase("rollout"):
        pass
    assert calls == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ZeroDivisionError), phase("rollout"):
        raise ZeroDivisionError
    assert calls == ["push rollout", "pop"]


def test_a_phase_costs_microseconds() -> None:
    with phase("warm-up"):
        pass
    begin = time.perf_counter()
    for _ in range(100):
        with phase("score"):
            pass
    assert (time.perf_counter() - begin) / 100 < 1e-3
