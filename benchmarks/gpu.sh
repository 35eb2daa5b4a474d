#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most ten minutes: tests, step times in three precisions, compilation
# and layout, augmentation, and the time that BCP's left-atrium protocol would take. Results go to $OUT as JSON and text.
#
#     OUT=results bash benchmarks/gpu.sh
#
# Where there is no package index, put wheels of the other packages (pip download -r <(pip freeze)) into wheels/ first;
# torch and numpy are taken from the interpreter that $PYTHON names.
set -uo pipefail
failed=()
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
mkdir -p "$OUT"
ends=$((SECONDS + ${SECONDS_LEFT:-580}))

export PYTHONPATH=$PWD
if ! "$PYTHON" -c "import monai, blosc2, nibabel, SimpleITK, tensorboard, pydantic, yaml, typer, rich, pytest" 2>/dev/null; then
    "$PYTHON" -m venv --system-site-packages .gpu-venv  # of the base interpreter: torch must be installed there
    PYTHON=$PWD/.gpu-venv/bin/python
    index=()
    [ -d wheels ] && index=(--no-index --find-links wheels)
    "$PYTHON" -m pip install --quiet "${index[@]}" monai nibabel SimpleITK scipy tensorboard pydantic pyyaml \
        typer rich blosc2 jinja2 matplotlib pytest || exit 4
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$OUT/gpu.txt"

# Each part gets its time or what is left, whichever is less; a part that runs out leaves what it measured so far.
part() {
    local name=$1 seconds=$2 left=$((ends - SECONDS))
    shift 2
    [ "$left" -lt 10 ] && { echo "no time left for $name"; return; }
    echo "== $name"
    timeout --signal INT --kill-after 10 "$((seconds < left ? seconds : left))" "$@" 2>&1 | tee "$OUT/$name.txt" || failed+=("$name")
}

step() { part "$1" "$2" "$PYTHON" benchmarks/step.py --device "$DEVICE" --out "$OUT/$1.json" "${@:3}"; }

part tests 90 "$PYTHON" -m pytest -q -m "not slow" tests/test_gpu.py tests/parts tests/test_augment.py
step protocol 60 --shapes la-protocol --precisions bf16 --rounds 5 --steps 5
step compiled 120 --shapes la-protocol --precisions bf16 --methods bcp --compile default reduce-overhead --rounds 3 --steps 5
step channels-last 40 --shapes la-protocol --precisions bf16 --methods bcp --set train.channels_last=true --rounds 3 --steps 5
step bf16 60 --shapes la cbct --precisions bf16 --rounds 3 --steps 3
step tf32 60 --shapes la cbct --precisions tf32 --rounds 3 --steps 3
step fp32 80 --shapes la cbct --precisions fp32 --rounds 3 --steps 2
part augment 60 "$PYTHON" benchmarks/augment.py --device "$DEVICE" --out "$OUT/augment.json"

[ ${#failed[@]} -eq 0 ] || { echo "failed or out of time: ${failed[*]}"; exit 1; }
