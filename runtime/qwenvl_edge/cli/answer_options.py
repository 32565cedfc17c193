"""Options of `qwenvl chat` for an answer: its sampling, its ends, and the form that it keeps to."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import PromptError

_NUMBERS = {
    "temperature": (float, "T", "logits are divided by it; 0 always takes the likeliest token"),
    "top_p": (float, "P", "keep the likeliest tokens up to this probability"),
    "top_k": (int, "K", "keep the K likeliest tokens; 0 keeps all"),
    "min_p": (float, "P", "keep tokens at least this probable relative to the likeliest"),
    "repetition_penalty": (float, "X", "above 1: make tokens less likely that came before; 1 leaves them"),
    "seed": (int, "N", "make sampling repeatable (default: another one each time)"),
    "max_new_tokens": (int, "N", "longest answer in tokens"),
    "deadline_ms": (float, "MS", "end the answer after so many milliseconds (default: none)"),
}


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command's parser."""
    group = parser.add_argument_group(
        "the answer", "Where no default is given, the bundle's holds; `qwenvl info` prints those."
    )
    for name, (kind, metavar, words) in _NUMBERS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=words)
    group.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; repeatable (default: none)",
    )
    forms = group.add_mutually_exclusive_group()
    forms.add_argument("--json-schema", metavar="S", help="keep to this JSON Schema: a file, or the schema itself")
    forms.add_argument("--regex", metavar="R", help="keep to this regular expression")
    forms.add_argument("--choice", action="append", metavar="TEXT", help="answer with one of these; repeatable")


def read_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, as the engine's calls take them.

    Raises:
        PromptError: a form cannot be read, or is none.
    """
    overrides: dict[str, Any] = {name: getattr(arguments, name) for name in _NUMBERS}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if "temperature" in overrides:
        overrides["do_sample"] = True  # a bundle's default may be greedy
    if arguments.greedy:
        overrides["do_sample"] = False
    if arguments.stop:
        overrides["stop"] = arguments.stop
    if (constraint := _form(arguments)) is not None:
        overrides["constraint"] = constraint
    return overrides


def _form(arguments: argparse.Namespace) -> Any:
    from qwenvl_edge.constraints.constraint import Constraint

    if arguments.json_schema is not None:
        return Constraint.json(_read_schema(arguments.json_schema))
    if arguments.regex is not None:
        return Constraint.regex(arguments.regex)
    return None if arguments.choice is None else Constraint.choice(arguments.choice)


def _read_schema(given: str) -> Any:
    is_schema = given.lstrip().startswith("{")
    where = "--json-schema" if is_schema else f'"{given}"'
    try:
        return json.loads(given if is_schema else Path(given).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PromptError(f"cannot read the schema {where}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where} is no JSON: {error}.") from None
