"""The last part of gpu_suite.sh: writes suite.json, and puts the machine's facts into pytest-benchmark's JSON.

python profiling/suite_summary.py --out DIR NAME=EXIT_CODE=SECONDS ...
"""

import argparse
import json
import sys
from pathlib import Path

import machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("parts", nargs="+", help="NAME=EXIT_CODE=SECONDS")
    arguments = parser.parse_args()
    parts = []
    for text in arguments.parts:
        name, code, seconds = text.split("=")
        # 124 and 137 are what `timeout` leaves.
        state = {"0": "passed", "124": "out of time", "137": "out of time"}.get(code, "failed")
        parts.append({"part": name, "state": state, "exit_code": int(code), "seconds": int(seconds)})
        print(f"{name:>20} {state:>12} {int(seconds):>5} s")
    kernels = arguments.out / "kernels.json"
    if kernels.exists() and kernels.stat().st_size:
        result = json.loads(kernels.read_text(encoding="utf-8"))
        # Instead of the host's name and its processor's flags: what matters here.
        result["machine_info"] = machine.facts()
        result.pop("commit_info", None)
        kernels.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    machine.write_json(arguments.out / "suite.json", {"parts": parts, "seconds": sum(p["seconds"] for p in parts)})
    return int(any(part["exit_code"] for part in parts))


if __name__ == "__main__":
    sys.exit(main())
