"""A bundle.json or plan.json with any value at any place opens or is a BundleError, at once; found by a generator."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_edge import QwenVLEngine, QwenVLError
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import PLAN_NAME, PlanManifest
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.bundle.manifest import Manifest
from qwenvl_edge.errors import BundleError
from support.scripted import ScriptedBackend, write_bundle

SECONDS = 1.0
PLAN = {
    "format": 1,
    "target": "sm_86",
    "builder": {"api": "tensorrt_rtx", "version": "1.7.1.116", "platform": "linux-x86_64"},
    "compute_capabilities": [86],
    "dialect": "standard",
    "plugin": "",
    "precision": {"vision": "fp16", "decoder": "fp16", "kv_cache": "float"},
    "limits": {"max_context": 2048, "max_batch": 1, "max_images": 1, "chunk": 256},
    "profiles": {
        name: {"index": 0, "tokens": [1, 1, 1], "rows": [1, 1, 1]} for name in ("decode", "prefill", "verify")
    },
    "bundle_digest": "0" * 64,
    "files": {name: {"size": 1, "sha256": "0" * 64} for name in ("vision.plan", "decoder.plan")},
}
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**24, 2**31, 2**53, 2**63, -(2**63), 10**400]),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["", "..", "/", "\0", "a" * 5000, "\ud800", "fp32", "qwen.tiktoken", "."]),
)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> tuple[Any, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bundle")
    manifest = write_bundle(folder).manifest
    files = {name: FileInfo(info.size, sha256(folder / name)) for name, info in manifest.files.items()}
    graphs = dataclasses.replace(manifest.graphs, vision="qwen.tiktoken")
    dataclasses.replace(manifest, files=files, graphs=graphs).write(folder)
    return folder, json.loads((folder / "bundle.json").read_text())


def places(raw: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    return [*([at] if at else []), *(place for key, value in items for place in places(value, (*at, key)))]


def changed(raw: Any, draw: st.DataObject) -> str:
    """JSON with up to two values put in the place of others, or beside them."""
    raw = copy.deepcopy(raw)
    for _ in range(draw.draw(st.integers(1, 2))):
        *parents, last = draw.draw(st.sampled_from(places(raw)))
        target = raw
        for key in parents:
            target = target[key]
        key = draw.draw(st.just(last) | st.text(max_size=9)) if isinstance(target, dict) else last
        target[key] = draw.draw(VALUES)
    return json.dumps(raw)


@settings(max_examples=300)
@given(st.data())
def test_any_value_anywhere_in_a_bundle(bundle, draw):
    folder, raw = bundle
    (folder / "bundle.json").write_text(changed(raw, draw))
    clock = time.process_time()
    try:
        opened = Bundle.open(folder)
        backend = ScriptedBackend("fine<|im_end|>", model=opened.manifest.model)
        QwenVLEngine(opened, backend=backend, max_context=256).count_tokens("hi")
    except QwenVLError as error:
        assert len(str(error)) < 1500
    assert time.process_time() - clock < SECONDS


@settings(max_examples=200)
@given(st.data())
def test_any_value_anywhere_in_a_plan(draw):
    clock = time.process_time()
    try:
        PlanManifest.from_json(changed(PLAN, draw))
    except BundleError as error:
        assert PLAN_NAME in str(error) and len(str(error)) < 1500
    assert time.process_time() - clock < SECONDS


@settings(max_examples=200)
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")) | VALUES.map(json.dumps))
def test_any_text(text):
    for reader in (Manifest, PlanManifest):
        with pytest.raises(BundleError):
            reader.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "9" * 100_000,
        '{"format": ' + "9" * 5000 + "}",
        '{"format": Infinity}',
        '"' + "a" * 10**6,
    ],
)
def test_deep_long_and_endless(text):
    for reader in (Manifest, PlanManifest):
        with pytest.raises(BundleError) as caught:
            reader.from_json(text)
        assert len(str(caught.value)) < 300
