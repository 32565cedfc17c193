#!/bin/bash
# Ten minutes of a GPU: bash benchmarks/gpu_session.sh KIT OUT
#
# KIT is what `make gpu-kit` has built for that GPU, on a machine that need not have one; it is carried there with the
# checkout. OUT receives every result as soon as it is there: NAME.log per step, gpu.json, and steps.txt with exit status
# and seconds (124: it took too long). A step that fails loses no other. The GPU's machine needs PyTorch, NumPy and
# pytest; compute-sanitizer and ncu are used where they are found.
set -u
kit=$(cd "$1" && pwd) && mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
plugin=$kit/plugin/libqwenvl_tensorrt_plugin.so
test_program=$kit/plugin/tests/gpu_test
end=$((SECONDS + ${GPU_SECONDS:-570}))
failed=0
: > "$out/steps.txt"

# step NAME LIMIT COMMAND...: runs for at most LIMIT seconds, and for what is left.
step() {
    local name=$1 limit=$2 began=$SECONDS left=$((end - SECONDS)) status
    shift 2
    if [ "$left" -lt 5 ]; then
        echo "$name: no time left" | tee -a "$out/steps.txt"
        failed=1
        return
    fi
    timeout --kill-after 5 "$((limit < left ? limit : left))" "$@" > "$out/$name.log" 2>&1
    status=$?
    [ "$status" = 0 ] || failed=1
    echo "$name: $status, $((SECONDS - began)) s" | tee -a "$out/steps.txt"
    tail -n 3 "$out/$name.log"
}

# The same if a program is there; a note in steps.txt if not.
step_with() {
    local program=$1
    shift
    if command -v "$program" > /dev/null; then step "$@"; else echo "$1: no $program" | tee -a "$out/steps.txt"; fi
}

site=$(mktemp -d) && trap 'rm -rf "$site"' EXIT
for wheel in "$kit"/*.whl; do
    [ ! -f "$wheel" ] || "$python" -m pip install --quiet --no-deps --target "$site" "$wheel"
done
export PYTHONPATH=$site:tests:.:runtime:export${PYTHONPATH:+:$PYTHONPATH}
gpu() {
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$python" benchmarks/gpu.py --library "$plugin" --json "$out/gpu.json" --seconds "$limit" "$@"
}

step device 10 nvidia-smi
if [ "$failed" != 0 ]; then
    echo "no GPU can be used here; nothing else is run" | tee -a "$out/steps.txt"
    exit 1
fi
step gpu_test 20 "$test_program" "$plugin"
gpu kernels 100 --only device --only kernels
gpu token 60 --only token
step test_kernels 80 "$python" -m pytest -p no:cacheprovider tests/hardware/gpu/test_kernels.py --plugin-build "$kit/plugin"
step_with compute-sanitizer racecheck 45 compute-sanitizer --tool racecheck --error-exitcode 9 "$test_program" "$plugin"
step_with compute-sanitizer memcheck 45 compute-sanitizer --tool memcheck --error-exitcode 9 "$test_program" "$plugin"
gpu torch 180 --only torch
gpu bundles 120 --only fp16 --only int4
step_with ncu ncu 40 ncu --clock-control none --kernel-name regex:'decode|prefill' --launch-count 24 \
    --metrics dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_tensor.sum \
    "$test_program" "$plugin"
exit "$failed"
