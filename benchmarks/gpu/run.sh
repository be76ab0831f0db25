#!/usr/bin/env bash
# Measure one GPU in at most ten minutes. Run it in the repository root; README.md in this folder says what it needs.
#
#   OUT     folder for the results (default: gpu-results)
#   LIMIT   seconds for everything (default: 570)
#   PYTHON  the Python to use (default: python3)
#   WHEELS  folder of wheels to install first, for a machine without a network (default: none)
set -u
OUT=${OUT:-gpu-results} LIMIT=${LIMIT:-570} PYTHON=${PYTHON:-python3} WHEELS=${WHEELS:-}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
TEMPORARY=$(mktemp -d) && LOGS=$TEMPORARY/logs && mkdir "$LOGS"
trap 'rm -rf "$TEMPORARY"' EXIT
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4 HF_HUB_OFFLINE=1 PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
export TORCHINDUCTOR_COMPILE_THREADS=8 TORCHINDUCTOR_CACHE_DIR=$TEMPORARY/inductor LLM_LAB_CACHE=$TEMPORARY/cache
export PYTHONPATH=$TEMPORARY/wheels:$PWD FAILURES=$LOGS/test-failures.txt

# part NAME SECONDS COMMAND...: run a command with a deadline, and show the end of its output. All of it and what else it
# writes is in $OUT/logs.tar.gz before the next part begins.
part() {
  local name=$1 limit=$2 left=$((LIMIT - SECONDS - 10)) code=0
  shift 2
  if ((left < limit)); then limit=$left; fi
  if ((limit < 10)); then echo "== $name: skipped, no time left"; return; fi
  echo "== $name: at $SECONDS s, for at most $limit s"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$LOGS/$name.log" 2>&1 || code=$?
  tail -n "${LINES_SHOWN:-20}" "$LOGS/$name.log"
  case $code in
    0) ;;
    124 | 137) echo "cut off after $limit s" ;;
    *) echo "exit code $code" ;;
  esac
  tar -C "$LOGS" -czf "$TEMPORARY/logs.tar.gz" . && mv "$TEMPORARY/logs.tar.gz" "$OUT/logs.tar.gz"
}

# tests NAME SECONDS EXPRESSION: run the GPU tests that match. A test that hangs is killed with its worker.
tests() {
  local files
  mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
  LINES_SHOWN=40 part "$1" "$2" "$PYTHON" -m pytest "${files[@]}" -m gpu -k "$3" -v --tb=short -n 3 \
    --timeout 60 --timeout-method thread -p benchmarks.gpu.pytest_failures -p no:cacheprovider
}

step() {
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" "$PYTHON" -m benchmarks.gpu.training_step "$@" --results "$LOGS" --compile-limit $((limit - 30))
}

# A whole run, and its second half again in a new process, whose losses should be the same. $1: Python; $2: a new folder.
RUN_AND_RESUME='
mkdir "$2" && cp configs/stories.yaml "$2" && cd "$2"
for resume in "" "--resume-from 50"; do
  "$1" -m llm_lab run stories.yaml device=cuda train.{max_steps=100,eval_steps=50,save_steps=50} $resume
done'

# install WHEEL...: make wheels importable.
install() {
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$TEMPORARY/wheels" "$@"
}

measure() {
  if [ -n "$WHEELS" ] && ! install "$WHEELS"/*.whl; then  # one that does not fit this machine must not cost the others
    rm -rf "$TEMPORARY/wheels"
    for wheel in "$WHEELS"/*.whl; do install "$wheel" || echo "not installed: $wheel"; done
  fi
  "$PYTHON" -c 'from benchmarks.gpu.cuda import require_gpu; require_gpu()' || return
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=timestamp,clocks.sm,power.draw,temperature.gpu,utilization.gpu,memory.used --format=csv \
      -l 4 >"$LOGS/nvidia-smi.csv" 2>&1 &
    trap "kill $!" EXIT
    nvidia-smi --query-gpu=name,memory.total,driver_version,power.limit --format=csv,noheader
  fi
  # What matters most comes first; what was measured before comes last.
  part versions 60 "$PYTHON" -m benchmarks.gpu.cuda
  # The variants of one call are in memory together: these fit into 80 GB.
  step steps 200 baseline no-cudnn bf16-residual 1b
  part run 90 bash -ec "$RUN_AND_RESUME" run "$PYTHON" "$TEMPORARY/home"
  tests tests-plain 90 'not compiled'
  part generation 110 "$PYTHON" -m benchmarks.gpu.generation
  tests tests-compiled 120 compiled
  part muon-resume 60 "$PYTHON" -m benchmarks.gpu.muon_resume
  part doctor 60 "$PYTHON" -m llm_lab doctor
  part peak 40 "$PYTHON" -m benchmarks.gpu.peak
  part attention-kernels 60 "$PYTHON" -m benchmarks.gpu.attention_kernels
  echo "== end at $SECONDS s; results in $OUT"
}

measure 2>&1 | tee "$OUT/summary.log"
exit "${PIPESTATUS[0]}"
