#!/bin/sh
# Installs dist/'s newest wheel into an empty environment and asks a bundle: the same words as this checkout's.
set -eu
cd "$(dirname "$0")/.."
bundle=$1 picture=$2 python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$(ls -t dist/qwenvl_edge-*.whl | head -1)"
"$python" release/answers.py "$bundle" "$picture" > "$work/here.json"
# -I: the package of the wheel, whatever the folder that this runs in holds
(cd "$work" && venv/bin/python -I "$OLDPWD/release/answers.py" "$OLDPWD/$bundle" "$OLDPWD/$picture") > "$work/wheel.json"
cat "$work/wheel.json"
cmp "$work/here.json" "$work/wheel.json" && echo "the wheel answers the same"
