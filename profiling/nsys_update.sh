#!/usr/bin/env bash
# Nsight Systems over one GRPO update at the 5B shape.
#
#   bash profiling/nsys_update.sh [--out NAME] [options of one_update.py]
#
# Purpose: where the GPU waits, and how the time of each phase divides over kernels.
# How to read it: NAME.nsys-rep opens in the Nsight Systems window. The NVTX row names the phases (rollout, replay, backward,
# optimizer), the CUDA row below shows the kernels. White gaps in the CUDA row are launch overhead or a wait for the CPU: in the
# rollout they should vanish with --graphs. The two tables that are printed:
#   nvtx_gpu_proj_sum   GPU time of each phase, as of its kernels ("Projected"); their sum against the wall time is the idle share
#   cuda_gpu_kern_sum   time of each kernel; matrix products and attention should lead, by about 9 to 1 together
# A kernel that stands out is one for ncu_kernel.sh. Exits with 3 where nsys is missing.
set -euo pipefail
source "$(dirname "$0")/bare_path.sh"
name=update
if [[ "${1:-}" == --out ]]; then
  name=$2
  shift 2
fi
if ! command -v nsys >/dev/null; then
  echo "nsys_update: nsys is not installed; install Nsight Systems (package nsight-systems of NVIDIA's CUDA repository)," \
    "or use python profiling/profiler_trace.py --out DIR" >&2
  exit 3
fi
nsys profile --trace=cuda,nvtx,cublas,cudnn --cuda-graph-trace=node --capture-range=cudaProfilerApi \
  --capture-range-end=stop --force-overwrite=true --output="$name" "$python" "$root/profiling/one_update.py" "$@"
nsys stats --report nvtx_gpu_proj_sum,cuda_gpu_kern_sum --format table "$name.nsys-rep"
