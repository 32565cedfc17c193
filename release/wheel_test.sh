#!/bin/sh
# Installs the newest wheel of dist/ into an empty environment and compares a bundle's answers with this checkout's.
set -eu
cd "$(dirname "$0")/.."
bundle=$(realpath "$1") picture=$(realpath "$2") python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$(ls -t dist/qwenvl_edge-*.whl | head -1)"
"$python" release/answers.py "$bundle" "$picture" > "$work/here.json"
# -I: the package of the wheel, whatever this folder holds
"$work/venv/bin/python" -I release/answers.py "$bundle" "$picture" > "$work/wheel.json"
cat "$work/wheel.json"
cmp "$work/here.json" "$work/wheel.json" && echo "the wheel answers the same"
