"""Fixtures of the server's tests."""

from __future__ import annotations

import time

import httpx
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from support import chromium
from support.served import WAIT_S, endless_bias, serving


@pytest.fixture(scope="session")
def bundle(nano_exports):
    return nano_exports()


@pytest.fixture(scope="session")
def backend(bundle):
    return OnnxRuntimeBackend(bundle, threads=1)


@pytest.fixture(scope="session")
def engine(bundle, backend):
    return QwenVLEngine(bundle, backend=backend)


@pytest.fixture(scope="session")
def endless(bundle):
    """A logit_bias under which no answer ends by itself."""
    return endless_bias(bundle)


@pytest.fixture
def slow(backend, monkeypatch):
    """Every token takes a while, so that a long answer cannot end before it is looked at."""
    plain = backend.decode_unchecked

    def decode(*arguments):
        time.sleep(0.02)
        return plain(*arguments)

    monkeypatch.setattr(backend, "decode_unchecked", decode)


@pytest.fixture(scope="session")
def address(engine):
    """A server with the default settings."""
    with serving(engine) as address:
        yield address


@pytest.fixture
def http(address):
    with httpx.Client(base_url=address, timeout=WAIT_S) as client:
        yield client


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = chromium.Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, address):
    browser.requests.clear()
    browser.problems.clear()
    browser.resize(1200, 800)
    browser.open(address)
    browser.until("document.querySelector('#model').textContent === 'nano'")
    yield browser
    assert browser.problems == []
    assert all(url.startswith((address, "data:", "blob:")) for url in browser.requests)  # nothing from outside
