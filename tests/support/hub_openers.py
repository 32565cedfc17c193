"""Opens checkpoints by name, each in a process of its own: huggingface_hub reads its environment when it is imported.

On standard input is a line of JSON per checkpoint: "arguments" (name and, if wanted, revision), "environment", and the
folder "cwd"; its answer is a line on standard output. Processes are forked, so that PyTorch is imported once.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import say
from qwenvl_edge_export import export  # noqa: F401 - imported before the fork
from qwenvl_edge_export.checkpoint.reader import Checkpoint

assert "huggingface_hub" not in sys.modules


def opened(each: dict[str, Any]) -> str:
    """What became of one checkpoint: its folder and a sum over a tensor, or the error."""
    os.environ.clear()
    os.environ.update(each["environment"])
    os.chdir(each["cwd"])
    name, *revision = each["arguments"]
    try:
        checkpoint = Checkpoint.open(name, revision=(revision or [None])[0])
    except QwenVLError as error:
        return f"ERROR {error}"
    return f"OPENED {checkpoint.path} {float(checkpoint.tensor('lm_head.weight').double().sum())}"


def main() -> None:
    """Fork for each line and wait for it."""
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            try:
                say(opened(json.loads(line)))
                sys.stdout.flush()
            finally:
                os._exit(0)  # whoever reads the answer sees that it is missing
        os.waitpid(pid, 0)
        say("")  # the end of an answer
        sys.stdout.flush()


if __name__ == "__main__":
    main()
