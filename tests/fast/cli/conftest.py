"""Engines with scripted answers for the program."""

import pytest

from qwenvl_edge import engine as engine_module
from support.scripted import engine


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Makes `qwenvl chat` open an engine with scripted answers, and records how."""
    calls = {}

    def install(*answers, **settings):
        qwen, backend = engine(tmp_path, *answers, **settings)

        def open_engine(bundle, **options):
            calls.update(bundle=bundle, **options)
            return qwen

        monkeypatch.setattr(engine_module, "QwenVLEngine", open_engine)
        return backend, calls

    return install
