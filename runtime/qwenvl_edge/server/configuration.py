"""Options of `qwenvl serve` from the command line, the environment and a TOML file, the first of these that has it."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import QwenVLError

PREFIX = "QWENVL_ARG_"
"""Not QWENVL_SERVE_: Kubernetes sets such variables for a service that is named qwenvl-serve."""
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class _Option:
    """One option; `default` holds where no source has it. flag: it takes no value. repeatable: its value is a list."""

    name: str
    default: Any
    kind: Callable[[str], Any]
    flag: bool
    repeatable: bool
    choices: tuple[str, ...]

    def read(self, value: Any, where: str) -> Any:
        """Return a value of the file or a text of the environment as the command line would give it."""
        if self.flag:
            return self._switch(value, where)
        if self.repeatable:
            values = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
            if not isinstance(values, list):
                raise QwenVLError(f"{where} is {value!r}; give a list.")
            return [self._one(part, where) for part in values if part != ""]
        return self._one(value, where)

    def _switch(self, value: Any, where: str) -> bool:
        word = str(value).lower()
        if isinstance(value, (bool, str)) and word in (*_YES, *_NO):
            return word in _YES
        raise QwenVLError(f"{where} is {value!r}; give true or false.")

    def _one(self, value: Any, where: str) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        try:
            if not (isinstance(value, str) or (number and self.kind in _KINDS)):
                raise ValueError
            found = self.kind(str(value))
        except ValueError:
            raise QwenVLError(f"{where} is {value!r}; give {_KINDS.get(self.kind, 'a string')}.") from None
        if self.choices and found not in self.choices:
            raise QwenVLError(f"{where} is {value!r}; give one of {', '.join(self.choices)}.")
        return found


class Configuration:
    """The options of a command, added one by one; its parser says None for what the command line does not have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._options: dict[str, _Option] = {}

    def add(self, *names: str, default: Any = None, **settings: Any) -> None:
        """Add an option to the parser, as its add_argument does."""
        added = self._parser.add_argument(*names, default=None, **settings)
        action = settings.get("action")
        self._options[added.dest] = _Option(
            added.dest,
            False if action == "store_true" else default,
            settings.get("type", str),
            flag=action == "store_true",
            repeatable=action == "append",
            choices=tuple(settings.get("choices", ())),
        )

    def complete(self, given: argparse.Namespace, environ: Mapping[str, str] | None = None) -> argparse.Namespace:
        """Return every option: of the command line, else of the environment, else of the file, else its default.

        An empty variable counts as absent. A path is taken as on the command line, from the working directory.

        Raises:
            QwenVLError: the file cannot be read; or it or the environment has an option that does not exist, or a value
                that the option does not take.
        """
        stated = {name: value for name, value in vars(given).items() if value is not None}
        texts = self._of_environment(os.environ if environ is None else environ)
        path = stated.get("config", texts.get("config"))
        values = {name: option.default for name, option in self._options.items()}
        return argparse.Namespace(**{**values, **({} if path is None else self._of_file(path)), **texts, **stated})

    def _of_environment(self, environ: Mapping[str, str]) -> dict[str, Any]:
        found = {}
        for variable, text in environ.items():
            if variable.startswith(PREFIX) and text:
                where = f"the variable {variable}"
                option = self._option(variable[len(PREFIX) :].lower(), where)
                found[option.name] = option.read(text, where)
        return found

    def _of_file(self, path: Path) -> dict[str, Any]:
        found = {}
        for key, value in _read_toml(path).items():
            option = self._option(key.replace("-", "_"), f'"{key}" in "{path}"')
            found[option.name] = option.read(value, f'"{key}" in "{path}"')
        return found

    def _option(self, name: str, where: str) -> _Option:
        if name in self._options:
            return self._options[name]
        close = difflib.get_close_matches(name, self._options, n=1)
        hint = f'; did you mean "{close[0].replace("_", "-")}"?' if close else "; `qwenvl serve --help` lists them."
        raise QwenVLError(f"{where} is no option of serve{hint}")


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise QwenVLError("on Python 3.10, --config needs tomli; run: pip install tomli") from None
    try:
        with path.open("rb") as file:
            found: dict[str, Any] = tomllib.load(file)
            return found
    except OSError as error:
        raise QwenVLError(f'cannot read the configuration "{path}": {error.strerror}.') from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise QwenVLError(f'the configuration "{path}" is not TOML: {error}.') from None
