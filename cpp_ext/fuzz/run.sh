#!/bin/sh
# Fuzzes the native core with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer, each target for SECONDS,
# then runs its threads under ThreadSanitizer:  cpp_ext/fuzz/run.sh [SECONDS] [BUILD_FOLDER]
set -eu
seconds=${1:-20}
build=${2:-build/fuzz}
cd "$(dirname "$0")/../.."
mkdir -p "$build"
core="cpp_ext/tokenizer cpp_ext/sampler cpp_ext/image cpp_ext/matmul cpp_ext/attention cpp_ext/simd"
flags="-std=c++17 -g -O1 -fno-omit-frame-pointer -ffp-contract=off -Wall -Wextra -Werror -Icpp_ext -Icpp_ext/fuzz"

echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$build/probe.cpp"
if ! clang++ -fsanitize=fuzzer,address "$build/probe.cpp" -o "$build/probe" 2>"$build/probe.log"; then
    echo "Skipped: fuzzing needs clang++ with libFuzzer (Debian: apt-get install clang libclang-rt-14-dev)."
    exit 0
fi

# compile NAME OPTIONS: the core without its Python bindings, as $build/NAME/*.o; what is newer is kept.
compile() {
    mkdir -p "$build/$1"
    for source in $(find $core -name '*.cpp'); do
        object=$build/$1/$(basename "$source" .cpp).o
        if [ -z "$(find "$object" -newer "$source" 2>/dev/null)" ] ||
            [ -n "$(find $core \( -name '*.hpp' -o -name '*.inc' \) -newer "$object")" ]; then
            # shellcheck disable=SC2086
            clang++ $flags $2 -c "$source" -o "$object"
        fi
    done
}

failed=0
checks="-fsanitize=address,undefined -fno-sanitize-recover=all"
compile asan "$checks -fsanitize=fuzzer-no-link"
for target in tokenizer decoder sampler image matmul towers; do
    # shellcheck disable=SC2086
    clang++ $flags $checks -fsanitize=fuzzer "cpp_ext/fuzz/$target.cpp" "$build"/asan/*.o -o "$build/$target"
    mkdir -p "$build/corpus/$target"
    echo "== $target, $seconds s"
    "$build/$target" -max_total_time="$seconds" -max_len=2048 -print_final_stats=1 -artifact_prefix="$build/$target-" \
        "$build/corpus/$target" >"$build/$target.log" 2>&1 || failed=1
    grep -E "does not hold|ERROR|runtime error|number_of_executed_units|Test unit written" "$build/$target.log" || true
done

compile tsan "-fsanitize=thread"
for program in threads kernels; do
    # shellcheck disable=SC2086
    clang++ $flags -fsanitize=thread -pthread "cpp_ext/fuzz/$program.cpp" "$build"/tsan/*.o -o "$build/$program"
    echo "== $program"
    "$build/$program" || failed=1
done
exit "$failed"
