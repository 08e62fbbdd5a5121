"""Where a result was measured: the facts that every JSON here carries, and how it is written."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from power import Reading, nvml_reading

from vrlvr_kernels.optional_triton import HAS_TRITON, triton

ROOT = Path(__file__).parents[1]


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def facts() -> dict[str, Any]:
    """Command, with absolute paths by their last part; commit, date, versions, device, driver and clocks.

    What does not apply is None.
    """
    cuda = torch.cuda.is_available()
    reading = nvml_reading()
    now = reading if isinstance(reading, Reading) else None
    properties = torch.cuda.get_device_properties(0) if cuda else None
    return {
        "command": shlex.join(
            ["python", *(Path(part).name if Path(part).is_absolute() else part for part in sys.argv)]
        ),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else None,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "device": properties.name if properties else f"{platform.processor() or platform.machine()} CPU",
        "multiprocessors": properties.multi_processor_count if properties else None,
        "memory_gib": round(properties.total_memory / 2**30, 1) if properties else None,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "driver": now.driver if now else None,
        "sm_clock_mhz": now.sm_clock_mhz if now else None,
        "memory_clock_mhz": now.memory_clock_mhz if now else None,
        "temperature_c": now.temperature_c if now else None,
    }


def commit() -> str:
    """The checkout's commit, marked if files differ from it; else what VRLVR_COMMIT says, for a copy without its history."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("VRLVR_COMMIT", "unknown")
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """The result with the machine's facts before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts()} | result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
