"""benchmarks/token_profile.py: its parts are all of a call, and its bytes those of the weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qwenvl_edge.backends.onnxruntime.session import fastest_dialect
from support.paths import ROOT


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_every_part_of_a_token_is_named(tiny_exports, tmp_path, precision):
    bundle, result = tiny_exports(precision), tmp_path / "profile.json"
    command = [sys.executable, ROOT / "benchmarks" / "token_profile.py", bundle.path, "--json", result]
    command += ["--prompt", "24", "--steps", "3", "--repeats", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    details = json.loads(result.read_text())["details"][bundle.path.name]
    for stage in ("prefill", "decode"):
        kinds = {kind: row for kind, row in details[stage].items() if isinstance(row, dict) and kind != "plain"}
        products = [kind for kind in kinds if kind.startswith("products ")]
        assert len(products) == 5, products
        assert all(kinds[kind]["median"] > 0 for kind in (*products, "attention", "rest", "between", "call"))
        assert sum(row["part"] for row in kinds.values()) == pytest.approx(1, abs=0.01)
    limits = sum(details["decode"][kind]["limit"] for kind in (*products, "attention"))
    if fastest_dialect(bundle) != "standard":
        assert limits == pytest.approx(details["decode"]["limit"], rel=0.05)
    assert all(row["g_per_s"] > 0 for kind, row in details["prefill"].items() if kind in products)
