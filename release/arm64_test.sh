#!/bin/sh
# Builds the wheel in an arm64 Debian, installs it there, compares a bundle's answers with this machine's and runs the
# native core's tests: release/arm64_test.sh BUNDLE PICTURE [RESULT.json]. All programs in it (Python, g++, the wheel)
# are arm64 code that QEMU's user mode emulates, about 14 times as slow; the kernel is this machine's. Needs root,
# debootstrap, qemu-user-static and binfmt-support (Debian's packages). The user land stays in .cache/arm64, the wheel
# in dist/. About 20 minutes on two idle cores.
set -eu
cd "$(dirname "$0")/.."
bundle=$1 picture=$2 result=${3:-out/arm64.json} root=$PWD/.cache/arm64
export PYTHON="${PYTHON:-.venv/bin/python}"

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

release/try_folder.sh "$root/work" "$bundle" "$picture"
# No /sys: it describes this machine's processor, and ONNX Runtime's arm64 code crashes on that. Without it, it warns.
trap 'umount "$root/proc"' EXIT
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
chroot "$root" sh /work/try_wheel.sh /work python3
mkdir -p dist && cp "$root"/work/dist/*.whl dist/
"$PYTHON" release/record.py "$result" "$(qemu-aarch64-static --version | head -1)" "$root/work"
