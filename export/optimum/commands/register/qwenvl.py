"""`optimum-cli export qwenvl`: the exporter of `qwenvl export`, with its options and its sentences.

optimum-cli imports every file of this namespace when it starts, so nothing that is large is imported here.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from qwenvl_edge.cli.commands.export import add_export_options, run_export
from qwenvl_edge.cli.exit_codes import exit_code


class QwenVLExportCommand(BaseOptimumCLICommand):
    """Turns a checkpoint into a bundle."""

    COMMAND = CommandInfo(
        name="qwenvl",
        help="Turn a checkpoint of the Qwen-VL line into a bundle of Qwen-VL Edge (as qwenvl export does).",
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Add the options to optimum's parser."""
        add_export_options(parser)

    def run(self) -> None:
        """Export; end the program with the exit code of `qwenvl export`, if it is not 0."""
        if code := exit_code(lambda: run_export(self.args), ends_process=True):
            sys.exit(code)


REGISTER_COMMANDS = [(QwenVLExportCommand, ExportCommand)]
