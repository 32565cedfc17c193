#!/bin/sh
# Builds the source package in an emulated arm64 Debian, installs the wheel there and compares a bundle's answers with
# this machine's: release/arm64_test.sh BUNDLE PICTURE. Needs root, debootstrap, qemu-user-static and binfmt-support
# (Debian's packages). The user land stays in .cache/arm64 and the wheel in dist/; an hour on one core.
set -eu
cd "$(dirname "$0")/.."
bundle=$1 picture=$2 python=${PYTHON:-.venv/bin/python} root=$PWD/.cache/arm64

fail() { echo "$1" >&2; exit 2; }
for program in debootstrap qemu-aarch64-static update-binfmts; do
    command -v $program > /dev/null || fail "$program is missing: install debootstrap, qemu-user-static, binfmt-support"
done
[ "$(id -u)" = 0 ] || fail "making another system's user land needs root"
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
update-binfmts --enable qemu-aarch64

if [ ! -e "$root/.ready" ]; then
    rm -rf "$root"
    debootstrap --arch=arm64 --variant=minbase --include=ca-certificates,python3-venv,python3-dev,g++ bookworm "$root"
    touch "$root/.ready"
fi
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp /etc/resolv.conf "$root/etc/"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
trap 'umount "$root/proc"' EXIT

rm -rf "$root/work" && mkdir "$root/work"
"$python" -m build --quiet --sdist --outdir "$root/work" .
cp -r "$bundle" "$root/work/bundle"
cp "$picture" "$root/work/picture.png"
cp release/answers.py "$root/work/"
env -u PIP_FIND_LINKS chroot "$root" sh -eu -c '
    cd /work
    python3 -m venv venv
    venv/bin/python -m pip install --quiet --upgrade pip
    venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist qwenvl_edge-*.tar.gz
    venv/bin/python -m pip install --quiet dist/qwenvl_edge-*.whl
    venv/bin/python answers.py bundle picture.png > arm64.json'
"$python" release/answers.py "$bundle" "$picture" > "$root/work/here.json"
cat "$root/work/arm64.json"
mkdir -p dist && cp "$root"/work/dist/*.whl dist/
cmp "$root/work/here.json" "$root/work/arm64.json" && echo "arm64 answers the same"
