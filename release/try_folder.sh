#!/bin/sh
# Prepares a new folder for release/try_wheel.sh: try_folder.sh WORK BUNDLE PICTURE.
set -eu
cd "$(dirname "$0")/.."
work=$1 python=${PYTHON:-.venv/bin/python}
rm -rf "$work" && mkdir -p "$work/checkout/.cache"
"$python" -m build --quiet --sdist --outdir "$work" . > /dev/null
cp -r "$2" "$work/bundle"
cp "$3" "$work/picture.png"
cp release/answers.py release/try_wheel.sh "$work/"
# The tests without the package's source: what they import is the wheel.
cp -r tests cpp_ext pyproject.toml "$work/checkout/"
[ ! -e .cache/qwen.tiktoken ] || cp .cache/qwen.tiktoken "$work/checkout/.cache/"
"$python" release/answers.py "$2" "$3" > "$work/here.json"
