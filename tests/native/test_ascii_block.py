"""The classes of 64 bytes: vector instructions and plain words, which machines without either use, against Python."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from support.paths import ROOT

INCLUDE = ROOT / "cpp_ext"
PROGRAM = """
#include <cstdio>
#include <initializer_list>
#include "tokenizer/ascii_block.hpp"
int main() {
    unsigned char text[qwenvl::AsciiBlock::kSize];
    while (std::fread(text, 1, sizeof text, stdin) == sizeof text) {
        const auto b = qwenvl::classify_ascii(text);
        for (auto word : {b.letters, b.numbers, b.spaces, b.newlines, b.blanks, b.apostrophes, b.beyond})
            std::printf("%llu ", static_cast<unsigned long long>(word));
        std::puts("");
    }
}
"""
CLASSES = (
    lambda byte: chr(byte).isascii() and chr(byte).isalpha(),
    lambda byte: byte in b"0123456789",
    lambda byte: byte in b"\t\n\v\f\r ",
    lambda byte: byte in b"\r\n",
    lambda byte: byte == ord(" "),
    lambda byte: byte == ord("'"),
    lambda byte: byte >= 0x80,
)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("options", [[], ["-U__SSE2__", "-U__aarch64__"]], ids=["vectors", "plain words"])
def test_every_byte_in_every_place_has_its_classes(tmp_path, options):
    source, program = tmp_path / "classes.cpp", tmp_path / "classes"
    source.write_text(PROGRAM)
    command = [
        "g++",
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        *options,
        f"-I{INCLUDE}",
        source,
        "-o",
        program,
    ]
    subprocess.run(command, check=True, timeout=300)
    text = bytes(byte for shift in range(64) for byte in (*range(shift, 256), *range(shift)))
    text += random.Random(0).randbytes(64 * 500)
    run = subprocess.run([program], input=text, capture_output=True, check=True, timeout=300)
    found = [[int(word) for word in line.split()] for line in run.stdout.splitlines()]
    blocks = [text[start : start + 64] for start in range(0, len(text), 64)]
    assert found == [[sum(1 << i for i, byte in enumerate(block) if of(byte)) for of in CLASSES] for block in blocks]
