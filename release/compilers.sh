#!/bin/sh
# Compiles the native core with every compiler that is found, warnings as errors, and imports each result:
#   PYTHON=python3 release/compilers.sh [COMPILER...]
# PYTHON needs pybind11. Without names: g++-11 to g++-15 and clang++, clang++-14 to clang++-21.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
build=build/compilers
core="cpp_ext/tokenizer cpp_ext/sampler cpp_ext/image cpp_ext/matmul cpp_ext/attention cpp_ext/simd cpp_ext/python"
flags="-std=c++17 -O3 -Wall -Wextra -Werror -fvisibility=hidden -ffp-contract=off -fPIC -Icpp_ext"
includes=$("$python" -c 'import pybind11, sysconfig; print("-I" + sysconfig.get_path("include"), "-I" + pybind11.get_include())')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
test $# -gt 0 || set -- g++-11 g++-12 g++-13 g++-14 g++-15 clang++ $(seq -f 'clang++-%g' 14 21)

failed=0
for compiler in "$@"; do
    command -v "$compiler" >/dev/null || continue
    folder=$build/$compiler
    rm -rf "$folder" && mkdir -p "$folder"
    # shellcheck disable=SC2086
    if find $core -name '*.cpp' -print0 |
        xargs -0 -P 2 -I{} sh -c '"$0" '"$flags $includes"' -c "$1" -o "$2/$(basename "$1").o"' "$compiler" {} "$folder" &&
        "$compiler" -shared -o "$folder/_core$suffix" "$folder"/*.o &&
        PYTHONPATH=$folder "$python" -c 'import _core; assert _core.kernel_variants()'; then
        echo "$compiler ($("$compiler" -dumpfullversion -dumpversion | head -1)): builds"
    else
        echo "$compiler: does not build"
        failed=1
    fi
done
exit "$failed"
