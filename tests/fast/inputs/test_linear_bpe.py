"""The linear-time encoder: built late and once, the same ids before and after."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.vocabularies import TINY, cores, full_vocabulary

WORTH_BYTES = 2**18  # DeferredLinearBpe::kWorthBytes


MEMORY = """
import os, sys
from qwenvl_edge.inputs.tokenizer import Tokenizer

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

grown = [resident_mb()]
tokenizer = Tokenizer(sys.argv[1], {})
grown.append(resident_mb())
tokenizer.encode("Describe the picture, please. " * 20 + "图中有什么？" * 20)
grown.append(resident_mb())
tokenizer.count("a" * 2**20)
grown.append(resident_mb())
print(*(after - before for before, after in zip(grown, grown[1:])))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_loading_takes_little_memory_and_prompts_do_not_build_the_encoder() -> None:
    command = [sys.executable, "-c", MEMORY, full_vocabulary()]
    loaded, prompted, hostile = map(float, subprocess.check_output(command, text=True).split())
    assert loaded <= 8
    assert prompted <= 1
    assert hostile > 5, "a megabyte of one letter was merged without it"


def test_ids_are_the_same_while_the_encoder_comes() -> None:
    """One text that it is built in the middle of."""
    text = "图中有一只红色的杯子，放在桌子上。" * (WORTH_BYTES // 30) + "international straightforwardness " * 100
    merging, linear = cores(full_vocabulary())
    wanted = merging.encode(text, [])
    assert linear.encode(text, []) == wanted
    assert Tokenizer(full_vocabulary(), {}).encode(text) == wanted


@pytest.mark.parametrize("attempt", range(3))
def test_threads_that_need_it_at_once(attempt: int) -> None:
    texts = [letter * (WORTH_BYTES + attempt) for letter in "abcd"] + ["杯子放在桌子上" * (WORTH_BYTES // 21)] * 2
    wanted = [cores(TINY)[1].encode(text, []) for text in texts]
    tokenizer = Tokenizer(TINY, {})
    found: list[list[int]] = [[]] * len(texts)
    start = threading.Barrier(len(texts))

    def work(slot: int) -> None:
        start.wait()
        found[slot] = tokenizer.encode(texts[slot])

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted
