"""Power, clocks, temperature and memory of a GPU along a run, from NVML (package nvidia-ml-py).

    with PowerSampler() as sampler:
        update()
    sampler.summary   # {"joules": ..., "power_w": ..., ...}, or None where there is no driver

Energy is the power integrated over time by the trapezium rule. NVML's own power reading is an average over some tens of
milliseconds, so a run of less than about a second is not to be trusted.
"""

import argparse
import importlib
import itertools
import sys
import threading
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Reading:
    """One look at the device. seconds: of a monotonic clock."""

    seconds: float
    power_w: float
    sm_clock_mhz: int
    memory_clock_mhz: int
    temperature_c: int
    memory_gib: float
    driver: str


def load_nvml() -> Any | str:
    """NVML, initialised, or one line that says why there is none."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return "no power readings: install nvidia-ml-py (pip install -e '.[profiling]')"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"no power readings: NVML does not start ({error}); they need an NVIDIA driver"
    return nvml


def read(nvml: Any, handle: Any) -> Reading:
    """One reading. Raises NVMLError if the driver refuses one."""
    driver = nvml.nvmlSystemGetDriverVersion()
    return Reading(
        seconds=time.monotonic(),
        power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        sm_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        memory_gib=nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
        driver=driver.decode() if isinstance(driver, bytes) else driver,
    )


def nvml_reading(index: int = 0) -> Reading | str:
    """One reading of a device now, or one line that says why there is none."""
    nvml = load_nvml()
    if isinstance(nvml, str):
        return nvml
    try:
        return read(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError as error:
        return f"no power readings: the driver refuses them ({error})"
    finally:
        nvml.nvmlShutdown()


def summarize(readings: list[Reading]) -> dict[str, float] | None:
    """Joules, and the means and extremes worth reading; None for fewer than two readings."""
    if len(readings) < 2:
        return None
    seconds = readings[-1].seconds - readings[0].seconds
    joules = sum(
        (after.seconds - before.seconds) * (before.power_w + after.power_w) / 2
        for before, after in itertools.pairwise(readings)
    )
    return {
        "seconds": seconds,
        "joules": joules,
        "power_w": joules / seconds,
        "power_w_max": max(r.power_w for r in readings),
        "sm_clock_mhz": sum(r.sm_clock_mhz for r in readings) / len(readings),
        "sm_clock_mhz_min": min(r.sm_clock_mhz for r in readings),
        "memory_clock_mhz": sum(r.memory_clock_mhz for r in readings) / len(readings),
        "temperature_c_max": max(r.temperature_c for r in readings),
        "memory_gib_max": max(r.memory_gib for r in readings),
        "readings": len(readings),
    }


class PowerSampler:
    """Reads a device every interval_s seconds in a thread, from entry to exit.

    problem: the line that says why there are no readings, else None. summary: as of `summarize`, after the exit.
    """

    def __init__(self, index: int = 0, interval_s: float = 0.05) -> None:
        self.index, self.interval_s = index, interval_s
        self.readings: list[Reading] = []
        self.summary: dict[str, float] | None = None
        self.problem: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._nvml: Any = None

    def __enter__(self) -> Self:
        nvml = load_nvml()
        if isinstance(nvml, str):
            self.problem = nvml
            return self
        self._nvml = nvml
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(self.index)
            while True:
                last = self._stop.is_set()  # one more reading at the end, so that the sum covers the whole run
                self.readings.append(read(self._nvml, handle))
                if last:
                    return
                self._stop.wait(self.interval_s)
        except self._nvml.NVMLError as error:
            self.problem = f"no power readings: the driver refuses them ({error})"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._nvml.nvmlShutdown()
        if self.problem is None:
            self.summary = summarize(self.readings)


def main() -> int:
    parser = argparse.ArgumentParser(description="Watches a GPU for some seconds; prints joules and means.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--index", type=int, default=0, help="number of the GPU")
    arguments = parser.parse_args()
    with PowerSampler(arguments.index) as sampler:
        if sampler.problem is None:
            time.sleep(arguments.seconds)
    if sampler.problem is not None:
        print(f"power: {sampler.problem}", file=sys.stderr)
        return 3
    print(asdict(sampler.readings[-1]))
    for name, value in (sampler.summary or {}).items():
        print(f"{name:>18} {value:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
