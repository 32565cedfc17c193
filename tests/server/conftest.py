"""Fixtures of the server's tests."""

from __future__ import annotations

import time

import httpx
import pytest

from qwenvl_edge import QwenVLEngine
from support.served import NANO, WAIT_S, serving


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    exporter = pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")
    return exporter.export(NANO, tmp_path_factory.mktemp("server") / "nano", check=False)


@pytest.fixture(scope="session")
def engine(bundle):
    return QwenVLEngine(bundle, threads=1)


@pytest.fixture(scope="session")
def endless(engine):
    """A logit_bias under which no answer ends by itself."""
    tokens = engine._family
    return {str(id_): -100 for id_ in (tokens.turn_end, tokens.turn_start, tokens.end_of_text)}


@pytest.fixture
def slow(engine, monkeypatch):
    """Every token takes a while, so that a long answer cannot end before it is looked at."""
    backend = engine._decoder._backend
    plain = backend.decode

    def decode(*arguments):
        time.sleep(0.02)
        return plain(*arguments)

    monkeypatch.setattr(backend, "decode", decode)


@pytest.fixture(scope="session")
def address(engine):
    """A server with the default settings."""
    with serving(engine) as address:
        yield address


@pytest.fixture
def http(address):
    with httpx.Client(base_url=address, timeout=WAIT_S) as client:
        yield client
