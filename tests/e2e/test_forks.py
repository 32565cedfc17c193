"""Processes that are forked from one with an engine: they say why they cannot answer, may open their own, and end."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

from qwenvl_edge import FrameSource, QwenVLEngine, QwenVLError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

# Each child ends by itself, as a worker does: the interpreter drops its copy of everything and the libraries end.
SCRIPT = """
import os, sys, threading
from qwenvl_edge import QwenVLEngine, QwenVLError

def refused(call):
    try:
        call()
    except QwenVLError as error:
        return "was forked" in str(error)
    return False

def child(work):
    pid = os.fork()
    if pid == 0:
        sys.exit(40 + bool(work()))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def reopened():
    return QwenVLEngine(sys.argv[1]).chat("hi", **short).text == wanted

engine, short = QwenVLEngine(sys.argv[1]), {"max_new_tokens": 4, "do_sample": False}
wanted = engine.chat("hi", **short).text
calls = [lambda: engine.chat("hi"), lambda: engine.count_tokens("hi"), engine.forget, lambda: engine.chat_many(["hi"])]
found = [child(lambda call=call: refused(call)) for call in calls]
found += [child(reopened)]

stream, batcher = engine.stream("hi", **short), engine.batcher(rows=2)
found += [child(lambda: refused(lambda: next(stream))), child(lambda: refused(lambda: batcher.submit("hi")))]
found += [child(lambda: stream.close() is None and batcher.close() is None)]
batcher.close()

stop = threading.Event()
def ask():
    while not stop.is_set():
        engine.chat("hi", **short)
threads = [threading.Thread(target=ask) for _ in range(2)]
[each.start() for each in threads]
found += [child(lambda: refused(lambda: engine.chat("hi"))), child(reopened)]
stop.set()
[each.join() for each in threads]
print(found, engine.chat("hi", **short).text == wanted)
"""


def test_forked_children_answer_or_say_why_not_and_end(nano):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, nano], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{[41] * 10} True\n", "", 0)


def _answer(engine: QwenVLEngine) -> str:
    return engine.chat("hi", max_new_tokens=4, do_sample=False).text


def test_an_engine_is_pickled_as_its_folder_and_options(nano):
    engine = QwenVLEngine(nano, max_context=256, channel_order="bgr")
    again = pickle.loads(pickle.dumps(engine))
    assert again is not engine and again.max_context == 256 and _answer(again) == _answer(engine)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_answer, (engine,)) == _answer(engine)


def test_things_of_one_process_say_so_when_they_are_pickled_or_copied(nano):
    engine = QwenVLEngine(nano)
    with engine.batcher(rows=1) as batcher:
        for thing in (batcher, engine.stream("hi"), FrameSource(), engine._selection.backend):
            for send in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(QwenVLError, match="cannot be copied or pickled"):
                    send(thing)
    reply = engine.chat("hi", max_new_tokens=2)
    assert pickle.loads(pickle.dumps(reply)).text == reply.text
