#!/usr/bin/env bash
# Everything that needs a GPU, in one go: tests, checks, benchmarks, logs.
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

# selective scan
scan_layouts() { for t in bf16 fp32 fp16; do logged "scan_layouts_$t" 100 python3 experiments/selective_scan/check_layouts.py $t; done; }
scan_layouts_bf16() { logged scan_layouts_bf16 100 python3 experiments/selective_scan/check_layouts.py bf16; }
scan_sweep() { logged scan_sweep 200 python3 experiments/selective_scan/sweep.py; }
scan_op_tests() { logged scan_op_tests 200 python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 8 -m gpu tests/kernels/test_ops.py -k "selective_scan-cuda"; }
scan_tests() { logged scan_tests 150 python3 -m pytest -p no:cacheprovider -q -m gpu tests/kernels/test_cuda_scan.py; }
scan_bars() { logged scan_bars 120 python3 experiments/selective_scan/bars.py "$out/selective_scan.csv" "${COMMIT:-unknown}"; }
scan_complex_tests() {
  logged scan_complex_tests 170 python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 8 -m gpu \
    tests/kernels/test_ops.py tests/kernels/test_cuda_complex.py tests/seqmodels/layers/test_mamba_options.py -k complex
}
scan_complex_bars() {
  logged scan_complex_bars 150 python3 experiments/selective_scan/complex_bars.py "$out/selective_scan_complex.csv" \
    "${COMMIT:-unknown}" --seconds 110 --layouts
}
scan_host_time() { logged scan_host_time 60 python3 experiments/selective_scan/host_time.py; }
scan_profile() {
  logged scan_profile 90 ncu --clock-control none --kernel-name "regex:forward_scan|backward_scan" \
    --section SpeedOfLight --section Occupancy --section WarpStateStats --section LaunchStats --section SchedulerStats \
    --section InstructionStats python3 experiments/selective_scan/one_run.py
}
scan_sanitize() {
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 logged "scan_$tool" 120 compute-sanitizer --tool $tool python3 experiments/gpu/sanitize_scan.py
  done
}

# Mamba-2's recurrence
ssd_bench() {  # with an empty cache of compiled kernels, so that the first call is one
  TRITON_CACHE_DIR="$(mktemp -d)" logged ssd_bench 240 python3 experiments/ssd/bench.py "$out/ssd.csv" "${COMMIT:-unknown}"
}
ssd_sweep() { logged ssd_sweep 300 python3 experiments/ssd/sweep.py; }  # which tile sizes are fastest; nothing depends on it
ssd_tests() {
  logged ssd_tests 300 python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 8 -m gpu tests/kernels/test_ssd_triton.py \
    tests/kernels/test_ops.py tests/kernels/test_triton.py tests/seqmodels/layers/test_laws.py -k "ssd or gated or mamba2"
}

# every op
kernel_tests() { logged kernel_tests 300 python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 8 -m gpu tests/kernels; }

# models
model_bench() { logged model_bench 150 python3 experiments/mamba_model/bench.py "$out/mamba_model.csv" "${COMMIT:-unknown}"; }
generation_speed() {
  logged generation_speed 100 python3 experiments/audio/generation_speed.py --csv "$out/generation.csv" \
    --commit "${COMMIT:-unknown}" ${AUDIO_SMOKE:+--smoke}
}
step_equality() {
  logged step_equality 90 python3 experiments/audio/step_equality.py --csv "$out/generation_equality.csv" \
    --commit "${COMMIT:-unknown}" ${AUDIO_SMOKE:+--smoke}
}
describe_memory() { logged describe_memory 300 python3 experiments/describe/check_memory.py "$out/describe_memory.csv" "${COMMIT:-unknown}"; }
layer_tests() {  # FLA: a folder with flash-linear-attention unpacked, for the tests of its layers
  PYTHONPATH="${FLA:+$FLA:}$PYTHONPATH" logged layer_tests 300 \
    python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 8 -m gpu tests/seqmodels/layers tests/seqmodels/inference
}
model_tests() { logged model_tests 200 python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 8 -m gpu tests/seqmodels; }

# comparisons; CHR20 is a FASTA with the 21 Mb of chromosome 20 that experiments/backbones/README.md names
backbones_bench() {
  logged backbones_bench 480 python3 experiments/backbones/bench.py --fasta "${CHR20:-build/chr20_40_61.fa.gz}" \
    --csv "$out/backbones.csv" --commit "${COMMIT:-unknown}"
}
synthetic_tasks() { logged synthetic_tasks 330 python3 experiments/synthetic/run.py --csv "$out/synthetic.csv" --commit "${COMMIT:-unknown}"; }

# DNA; DNA is the folder that experiments/dna/data.py filled. Leaves the CSVs and $out/dna_run, a model for score and embed
dna_pretrain() {
  local begin=$SECONDS work limit=${DNA_SECONDS:-560}; work=$(mktemp -d)
  local to="--out $out --commit ${COMMIT:-unknown} ${DNA_SMOKE:+--smoke}" from="--data ${DNA:-build/dna}"
  [ -e seqmodels/conf ] || ln -s ../conf seqmodels/conf  # not installed: its configuration lies beside the packages
  logged dna_markov $((limit - 5)) python3 experiments/dna/pretrain.py --parts markov,markov_both --work "$work/markov" $from \
    ${to/"$out"/"$out/markov"} &  # on the CPU, meanwhile
  logged dna_pretrain 320 python3 experiments/dna/pretrain.py --parts train --work "$work" $from $to
  local left=$((limit - SECONDS + begin))
  logged dna_context $((left - 5)) python3 experiments/dna/context.py --start "$work/runs/pretrain" --seconds $((left - 40)) \
    --work "$work" $from $to
  wait
  rm -rf "$work"
}

# DNA with labels; SPECIES is the folder that data.py of experiments/dna/species and benchmarks filled. The second starts
# from a model that the first has trained, and clears the runs of both away.
dna_species() {
  [ -e seqmodels/conf ] || ln -s ../conf seqmodels/conf  # not installed: its configuration lies beside the packages
  OMP_NUM_THREADS=2 logged dna_species 375 python3 experiments/dna/species/run.py --data "${SPECIES:-build/species}" \
    --out "$out/species" --work "$out/species_runs" --seconds 290 --commit "${COMMIT:-unknown}" ${SPECIES_SMOKE:+--smoke}
}
dna_benchmarks() {
  OMP_NUM_THREADS=2 logged dna_benchmarks 180 python3 experiments/dna/benchmarks/run.py --data "${SPECIES:-build/species}" \
    --out "$out/benchmarks" --work "$out/benchmark_runs" --start "$out/species_runs/pretrained" --seconds 140 \
    --commit "${COMMIT:-unknown}" ${SPECIES_SMOKE:+--smoke}
  rm -rf "$out/species_runs" "$out/benchmark_runs" "$out/benchmarks/unpacked"
}

# sound; DIGITS is the folder that experiments/audio/digits/data.py filled. Leaves CSVs, reports and sounds in $out/digits
audio_digits() {
  [ -e seqmodels/conf ] || ln -s ../conf seqmodels/conf  # not installed: its configuration lies beside the packages
  OMP_NUM_THREADS=8 logged audio_digits 570 python3 experiments/audio/digits/run.py "${DIGITS:-build/digits/fsdd}" \
    --out "$out/digits" --seconds "${DIGITS_SECONDS:-535}" --commit "${COMMIT:-unknown}" ${DIGITS_SMOKE:+--smoke}
}

# speech and music: SPEECH and MUSIC are folders that experiments/audio/{speech,music}/data.py filled. MUSIC holds MIDI files:
# they are rendered into PIANO first. {SPEECH,MUSIC}_OPTIONS: further options. Leaves tables and sounds in $out/speech, $out/music
piano=${PIANO:-/tmp/seqmodels-piano}
audio_speech() {
  [ -e seqmodels/conf ] || ln -s ../conf seqmodels/conf  # not installed: its configuration lies beside the packages
  OMP_NUM_THREADS=8 logged audio_speech 170 python3 experiments/audio/speech/run.py "${SPEECH:-build/speech}" \
    --out "$out/speech" --seconds "${SPEECH_SECONDS:-120}" --commit "${COMMIT:-unknown}" ${AUDIO_SMOKE:+--smoke} ${SPEECH_OPTIONS:-}
}
audio_render() {
  [ -e "$piano/manifest.csv" ] && return
  local wheel; wheel=$(mktemp -d)
  python3 -c 'import tinysoundfont' 2>/dev/null || python3 -m zipfile -e .whl/tinysoundfont-*-cp312-*.whl "$wheel"
  logged audio_render 250 python3 experiments/audio/music/render.py "${MUSIC:-build/music}" "$piano" --wheel "$wheel" \
    --workers "${RENDER_WORKERS:-12}" ${AUDIO_SMOKE:+--limit-s 3}
}
audio_music() {
  [ -e seqmodels/conf ] || ln -s ../conf seqmodels/conf
  local seconds=${MUSIC_SECONDS:-300}
  audio_render
  OMP_NUM_THREADS=8 logged audio_music $((seconds + 40)) python3 experiments/audio/music/run.py "$piano" --out "$out/music" \
    --seconds "$seconds" --commit "${COMMIT:-unknown}" ${AUDIO_SMOKE:+--smoke} ${MUSIC_OPTIONS:-}
}
audio() {  # all four, 570 s; the piano is rendered while the GPU does the first two
  local begin=$SECONDS
  audio_render &
  step_equality
  audio_speech
  wait
  generation_speed
  MUSIC_SECONDS=${MUSIC_SECONDS:-$((535 - SECONDS + begin))} audio_music
}
dna_inference() {  # DNA_RUN: a run folder of a causal DNA model, as dna_pretrain leaves it
  [ -e seqmodels/conf ] || ln -s ../conf seqmodels/conf
  logged dna_inference 255 python3 experiments/dna/inference/run.py --run "${DNA_RUN:-build/dna_run}" --out "$out" \
    --commit "${COMMIT:-unknown}" ${DNA_SMOKE:+--smoke}
}

for step in "$@"; do "$step"; done
exit 0
