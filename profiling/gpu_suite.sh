#!/usr/bin/env bash
# Everything that is measured on a GPU, in one call: correctness, kernels, the ESF waterfall, DiT MFU, attention backends.
#
#   bash profiling/gpu_suite.sh [--out DIR]        (default: profiling/results/<date>-<device>)
#
# Runs from a bare checkout: needs torch, triton, numpy, pyyaml and pytest with pytest-benchmark, pytest-timeout and hypothesis.
# What else is installed (diffusers, flash-attn, Liger, nvidia-ml-py, matplotlib) fills columns. Without a GPU it runs at tiny
# sizes and says so.
# At most, on a GPU: correctness 75 s, kernels 80 s, waterfall 280 s, MFU 55 s, attention 35 s; below 9 minutes in all. A part that
# fails or runs out of time stops no other; the exit code is then 1.
# Leaves in DIR: suite.json (parts, machine), suite.log, kernels.json, esf_saving.{json,md,png}, mfu.json, attention_backends.json.
set -uo pipefail
source "$(dirname "$0")/bare_path.sh"
out=
if [[ "${1:-}" == --out && -n "${2:-}" ]]; then
  out=$(mkdir -p "$2" && cd "$2" && pwd) || exit 2
  shift 2
fi
if [[ $# -ne 0 ]]; then
  echo "gpu_suite: unknown arguments: $*; only --out DIR is known" >&2
  exit 2
fi
cd "$root"
device=$("$python" -c 'import re, torch
print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) if torch.cuda.is_available() else "cpu")') || exit 1
out=${out:-profiling/results/$(date +%F)-$device}
mkdir -p "$out"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
: >"$out/suite.log"
parts=()
stretch=1
[[ $device == cpu ]] && stretch=4  # Triton's interpreter takes its time

# part NAME SECONDS COMMAND...: runs it for at most so long, into the log and onto the screen.
part() {
  local name=$1 limit=$(($2 * stretch)) begin=$SECONDS code
  shift 2
  echo "== $name (at most $limit s)" | tee -a "$out/suite.log"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$out/suite.log"
  code=${PIPESTATUS[0]}
  parts+=("$name=$code=$((SECONDS - begin))")
  echo "== $name: exit code $code after $((SECONDS - begin)) s" | tee -a "$out/suite.log"
}

tests=(tests/kernels/test_*.py tests/models/test_*.py)
if "$python" -c 'import jsonargparse' 2>/dev/null; then
  tests+=(tests/test_rollout.py tests/test_memory.py tests/test_update.py)
else
  echo "jsonargparse is missing: tests that read a configuration are left out" | tee -a "$out/suite.log"
  tests=("${tests[@]/tests\/models\/test_tiny_codec.py/}")
fi
export python
# A file a process: on a GPU most of the time is Triton compiling. Code 5 is pytest's for a file whose packages are missing.
part correctness 75 xargs --max-procs=8 --max-args=1 bash -c '"$python" -m pytest -q "$1" || [[ $? -eq 5 ]]' pytest \
  < <(printf '%s\n' "${tests[@]}" | grep .)
export KERNEL_BENCH_SECONDS=${KERNEL_BENCH_SECONDS:-70}
part kernels 80 "$python" -m pytest -q --benchmark-only --benchmark-json="$out/kernels.json" tests/kernels
part esf_saving 280 "$python" profiling/esf_saving.py --seconds 255 --out "$out"
part mfu 55 "$python" profiling/mfu.py --out "$out/mfu.json"
part attention_backends 35 "$python" profiling/attention_backends.py --out "$out/attention_backends.json"
"$python" profiling/suite_summary.py --out "$out" "${parts[@]}" | tee -a "$out/suite.log"
exit "${PIPESTATUS[0]}"
