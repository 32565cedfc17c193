#!/bin/sh
# Builds, installs and tries the wheel with other Pythons of this machine: release/pythons_test.sh BUNDLE PICTURE RESULT
# PYTHON..., such as python3.10 python3.13. A record of all goes to RESULT; the folders stay in build/pythons.
set -eu
cd "$(dirname "$0")/.."
bundle=$1 picture=$2 result=$3
shift 3
export PYTHON="${PYTHON:-.venv/bin/python}"
folders=
for other in "$@"; do
    work=$PWD/build/pythons/$("$other" -c 'import platform; print(platform.python_version())')
    release/try_folder.sh "$work" "$bundle" "$picture"
    sh release/try_wheel.sh "$work" "$other"
    folders="$folders $work"
done
"$PYTHON" release/record.py "$result" none $folders
