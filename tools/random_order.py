"""A plugin of pytest for tools/flaky.py: modules in a random order, their tests as written."""

from __future__ import annotations

import random
from itertools import groupby

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """--order-seed N: another number, another order."""
    parser.addoption("--order-seed", type=int, default=0, help="which order the modules have")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the modules; module fixtures stay made once."""
    modules = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
    random.Random(config.getoption("--order-seed")).shuffle(modules)
    items[:] = [item for module in modules for item in module]
