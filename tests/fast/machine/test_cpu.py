from __future__ import annotations

import pytest

from qwenvl_edge.machine import cpu as processor
from qwenvl_edge.machine.cpu import processor_features, processor_name, signed_products_saturate


def write_cpuinfo(root, text):
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(text)


def test_features_of_every_core_are_read(tmp_path):
    write_cpuinfo(tmp_path, "model name\t: avx512_vnni\nflags\t: fpu avx2\n\nflags\t: fpu sse2\nbugs\t: spectre\n")
    assert processor_features(tmp_path) == {"fpu", "avx2", "sse2"}


def test_a_board_and_a_system_that_does_not_tell(tmp_path):
    assert processor_features(tmp_path) == frozenset()
    write_cpuinfo(tmp_path, "Features\t: fp asimd asimddp\n")
    assert processor_features(tmp_path) == {"fp", "asimd", "asimddp"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\nmodel name\t: Another\n", "A Processor @ 2 GHz"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd42\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n", "0x41 0xd42"),
    ],
)
def test_the_name_of_a_processor(tmp_path, text, name):
    write_cpuinfo(tmp_path, text)
    assert processor_name(tmp_path) == name


def test_a_system_that_does_not_name_its_processor(tmp_path):
    assert processor_name(tmp_path)


@pytest.mark.parametrize(
    ("machine", "features", "saturates"),
    [
        ("x86_64", {"avx2"}, True),
        ("AMD64", set(), True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("aarch64", {"asimd"}, False),
    ],
)
def test_where_signed_products_saturate(monkeypatch, machine, features, saturates):
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "processor_features", lambda: frozenset(features))
    assert signed_products_saturate() is saturates
