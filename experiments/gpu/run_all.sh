#!/usr/bin/env bash
# Everything that needs a GPU, in one go, for a machine that is only lent: tests, checks, benchmarks, logs.
#
#   bash experiments/gpu/run_all.sh FOLDER STEP...      logs go to FOLDER; steps are the functions below
#
# Each step has its own time limit and log; a failing step does not stop the next. Add a function to add a step.
set -u
out=${1:?folder for logs}; shift
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD/kernels:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export SEQKERNELS_CACHE=${SEQKERNELS_CACHE:-/tmp/seqkernels-cache}
mkdir -p "$out"

logged() {  # logged NAME SECONDS COMMAND...: run under a limit, log, say how it went
  local name=$1 limit=$2; shift 2
  local begin=$SECONDS status=0
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  echo "== $name: exit $status, $((SECONDS - begin)) s"
  return $status
}

machine() { logged machine 20 nvidia-smi; }
scan_layouts() { for t in bf16 fp32 fp16; do logged "scan_layouts_$t" 80 python3 experiments/selective_scan/check_layouts.py $t; done; }
scan_sweep() { logged scan_sweep 200 python3 experiments/selective_scan/sweep.py; }
scan_tests() { logged scan_tests 200 python3 -m pytest -p no:cacheprovider -q -m gpu tests/kernels -k "scan" -x --maxfail=30; }
kernel_tests() { logged kernel_tests 300 python3 -m pytest -p no:cacheprovider -q -m gpu tests/kernels --maxfail=30; }

for step in "$@"; do "$step"; done
exit 0
