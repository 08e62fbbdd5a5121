#!/usr/bin/env bash
# Nsight Compute on one kernel, as it runs within a GRPO update at the 5B shape.
#
#   bash profiling/ncu_kernel.sh KERNEL [--out NAME] [options of one_update.py]
#
# KERNEL: a regular expression for the kernel's function name, e.g. '_layernorm_modulate_forward' (names: profiler_trace.py).
# Purpose: why a kernel is as slow as it is. Three launches are measured, after one that is skipped; clocks are left as they are.
# How to read it (NAME.ncu-rep, or the text that is printed):
#   GPU Speed Of Light    a fused elementwise kernel should show about 90 % DRAM throughput; far less and little compute as well
#                         means latency: too few bytes in flight (occupancy, loads below 16 bytes)
#   Memory Workload       sectors per request: 16 for 16-byte loads of a warp of bf16; local memory traffic should be zero
#   Launch Statistics     registers a thread; a grid below the number of multiprocessors leaves some of them idle
#   Warp State            "stall long scoreboard" is waiting for memory, "stall barrier" for other warps of a reduction
# Exits with 3 where ncu is missing. Hardware counters may need permission (NVIDIA's page on ERR_NVGPUCTRPERM).
set -euo pipefail
source "$(dirname "$0")/bare_path.sh"
if [[ $# -eq 0 || "$1" == -* ]]; then
  echo "ncu_kernel: name a kernel first, e.g. bash profiling/ncu_kernel.sh _layernorm_modulate_forward" >&2
  exit 2
fi
kernel=$1
shift
name=kernel
if [[ "${1:-}" == --out ]]; then
  name=$2
  shift 2
fi
if ! command -v ncu >/dev/null; then
  echo "ncu_kernel: ncu is not installed; install Nsight Compute (package nsight-compute of NVIDIA's CUDA repository)" >&2
  exit 3
fi
# Eight samples a step would only repeat the same launches: a short update is enough.
ncu --set full --clock-control none --profile-from-start off --kernel-name "regex:$kernel" --launch-skip 1 --launch-count 3 \
  --force-overwrite --export "$name" "$python" "$root/profiling/one_update.py" --num_steps 2 --window 1 "$@"
ncu --import "$name.ncu-rep" --page details
