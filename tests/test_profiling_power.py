"""Energy and means from a made-up NVML; a plain line where there is no package, no driver, or no permission."""

import sys
import time
from types import SimpleNamespace

import power
import pytest
from power import PowerSampler, Reading, nvml_reading, summarize


class NVMLError(Exception):
    pass


def fake_nvml(**replaced) -> SimpleNamespace:
    """300 W, 1.5 GiB in use; counts how often it was started and shut down."""
    nvml = SimpleNamespace(NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0, open=0)

    def start() -> None:
        nvml.open += 1

    def shut_down() -> None:
        nvml.open -= 1

    nvml.nvmlInit, nvml.nvmlShutdown = start, shut_down
    nvml.nvmlSystemGetDriverVersion = lambda: "580.1"
    nvml.nvmlDeviceGetHandleByIndex = lambda index: f"gpu {index}"
    nvml.nvmlDeviceGetPowerUsage = lambda handle: 300_000
    nvml.nvmlDeviceGetClockInfo = lambda handle, kind: {1: 1980, 2: 3201}[kind]
    nvml.nvmlDeviceGetTemperature = lambda handle, kind: 50
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=3 * 2**29)
    nvml.__dict__.update(replaced)
    return nvml


def refuse(*arguments) -> None:
    raise NVMLError("refused")


def test_joules_are_power_over_time() -> None:
    readings = [Reading(t, w, 1000 + t, 2, 40 + t, t, "d") for t, w in ((0, 100.0), (1, 300.0), (3, 300.0))]
    summary = summarize(readings)
    assert summary is not None
    assert summary["joules"] == 200 + 600
    assert summary["power_w"] == pytest.approx(800 / 3)
    assert (summary["seconds"], summary["power_w_max"], summary["temperature_c_max"]) == (3, 300, 43)
    assert summary["sm_clock_mhz"] == pytest.approx(3004 / 3)
    assert summary["memory_gib_max"] == 3
    assert summarize(readings[:1]) is None


def test_a_run_is_sampled_from_begin_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    begin = time.monotonic()
    with PowerSampler(interval_s=0.01) as sampler:
        time.sleep(0.1)
    elapsed = time.monotonic() - begin
    assert sampler.problem is None
    assert sampler.summary is not None
    assert sampler.summary["readings"] >= 3
    assert 0.09 < sampler.summary["seconds"] <= elapsed
    assert sampler.summary["joules"] == pytest.approx(300 * sampler.summary["seconds"])
    assert sampler.summary["memory_gib_max"] == 1.5
    assert nvml.open == 0


def test_a_failing_run_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    sampler = PowerSampler()
    with pytest.raises(ZeroDivisionError), sampler:
        raise ZeroDivisionError
    assert sampler._thread is not None
    assert not sampler._thread.is_alive()
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("nvml", "told"),
    [
        (None, "install nvidia-ml-py"),
        (fake_nvml(nvmlInit=refuse), "need an NVIDIA driver"),
        (fake_nvml(nvmlDeviceGetPowerUsage=refuse), "the driver refuses them"),
    ],
    ids=["package", "driver", "permission"],
)
def test_without_readings_there_is_one_line_and_no_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nvml: SimpleNamespace | None, told: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with PowerSampler() as sampler:
        pass
    assert sampler.summary is None
    assert told in (sampler.problem or "")
    assert told in str(nvml_reading())
    monkeypatch.setattr("sys.argv", ["power.py", "--seconds", "0.01"])
    assert power.main() == 3
    line = capsys.readouterr().err.strip()
    assert told in line
    assert "\n" not in line


def test_one_reading(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlSystemGetDriverVersion=lambda: b"570.0"))
    reading = nvml_reading()
    assert isinstance(reading, Reading)
    assert (reading.power_w, reading.sm_clock_mhz, reading.driver) == (300, 1980, "570.0")
    monkeypatch.setattr("sys.argv", ["power.py", "--seconds", "0.05"])
    assert power.main() == 0
    assert "joules" in capsys.readouterr().out
