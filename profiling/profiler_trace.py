"""torch.profiler's trace and table of GRPO updates: what to use where Nsight Systems is not installed.

    python profiling/profiler_trace.py --out DIR [options of one_update.py]

Writes DIR/trace.json.gz (open it at ui.perfetto.dev or chrome://tracing: phases are the spans above the operations; gaps
between the kernels of a stream are launch overhead) and DIR/table.txt: operations by the device's time (the CPU's, without a
GPU), to see which kernels are worth a look with ncu_kernel.sh. Tracing slows the CPU side: take seconds from esf_saving.py.
"""

import argparse
import sys
from pathlib import Path

import torch
from one_update import add_options, prepare
from torch.profiler import ProfilerActivity, profile

from vrlvr.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trace and the table")
    arguments = parser.parse_args()
    try:
        update = prepare(arguments)
    except UserError as error:
        print(f"profiler_trace: {error}", file=sys.stderr)
        return 2
    gpu = update.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.autograd.set_multithreading_enabled(False), profile(activities=activities) as profiler:
        for _ in range(arguments.updates):
            update.run()
    arguments.out.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(arguments.out / "trace.json.gz"))
    table = profiler.key_averages().table(sort_by=f"self_{'cuda' if gpu else 'cpu'}_time_total", row_limit=40)
    (arguments.out / "table.txt").write_text(table, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
