"""Names of tensors in files: prefixes, naming schemes, buffers, adapters, and messages that stay short."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.listing import few, shortened
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.checkpoint.tensor_names import canonical_names
from qwenvl_edge_export.families.qwen_vl.family import QwenVLExport
from support.random_checkpoint import config_dict, random_tensors

PLAIN = random_tensors(config_dict())


def opened(small_checkpoint, tensors, **options):
    return Checkpoint.open(small_checkpoint(tensors=tensors, **options))


def assert_same(checkpoint):
    for name, tensor in PLAIN.items():
        assert torch.equal(checkpoint.tensor(name), tensor)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "model.", "model.model.", "_orig_mod.", "net.vlm."])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_prefix_of_all_names_is_taken_off(small_checkpoint, prefix, pickled):
    tensors = {f"{prefix}{name}": tensor for name, tensor in PLAIN.items()}
    assert_same(opened(small_checkpoint, tensors, pickled=pickled))


def test_a_prefix_of_some_names_is_taken_off(small_checkpoint):
    tensors = {name if "visual" in name else f"model.{name}": tensor for name, tensor in PLAIN.items()}
    assert_same(opened(small_checkpoint, tensors))


def test_wrappers_within_names(small_checkpoint):
    tensors = {name.replace(".h.", "._orig_mod.h."): tensor for name, tensor in PLAIN.items()}
    assert_same(opened(small_checkpoint, tensors))


def test_two_models_in_one_file_are_refused(small_checkpoint):
    tensors = PLAIN | {f"ema.{name}": tensor.clone() for name, tensor in PLAIN.items()}
    with pytest.raises(CheckpointError, match=r"twice, under .ema\.. and without a prefix") as caught:
        opened(small_checkpoint, tensors)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "name",
    [
        "transformer.rotary_emb.inv_freq",
        "transformer.h.0.attn.rotary_emb.inv_freq",
        "transformer.h.1.attn.masked_bias",
        "transformer.h.1.attn.bias",
        "transformer.h.1.attn.logn_tensor",
        "transformer.rotary_emb.cos_cached",
        "transformer.position_ids",
        "module.transformer.h.0.attn.rotary_emb.inv_freq",
    ],
)
def test_buffers_that_carry_nothing_are_ignored(small_checkpoint, name):
    assert_same(opened(small_checkpoint, PLAIN | {name: torch.zeros(4)}))


def lora():
    tensors = {name.replace(".c_attn.", ".c_attn.base_layer."): tensor for name, tensor in PLAIN.items()}
    parts = {
        f"transformer.h.{i}.attn.c_attn.lora_{ab}.default.weight": torch.zeros(8, 8) for i in (0, 1) for ab in "AB"
    }
    return tensors | parts


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_an_adapter_that_is_not_merged_is_named(small_checkpoint, prefix):
    with pytest.raises(
        CheckpointError, match=r"adapter .* is not merged: 8 tensors such as .*merge_and_unload"
    ) as caught:
        opened(small_checkpoint, {f"{prefix}{name}": tensor for name, tensor in lora().items()})
    assert len(str(caught.value)) < 500


def test_names_of_another_model_are_shown_by_examples(small_checkpoint):
    tensors = {f"blocks.{i}.weight": torch.zeros(1) for i in range(2000)}
    with pytest.raises(CheckpointError, match="extra") as caught:
        opened(small_checkpoint, tensors)
    assert len(str(caught.value)) < 500


class Renaming(QwenVLExport):
    """A family whose files have a second naming scheme, and a head that may be repeated."""

    copies = MappingProxyType({"output.weight": "lm_head.weight"})
    ignored = ("*.draft.*",)

    def rename(self, name):
        return name.replace("backbone.layers.", "transformer.h.")


def test_a_familys_own_naming_scheme_is_renamed_under_any_prefix():
    family = Renaming.from_dict(config_dict())
    names = [name.replace("transformer.h.", "backbone.layers.") for name in PLAIN]
    for prefix in ("", "module."):
        found = canonical_names("x", [f"{prefix}{name}" for name in names], family)
        assert set(found) == set(PLAIN)
        assert found["transformer.h.1.ln_2.weight"] == f"{prefix}backbone.layers.1.ln_2.weight"
    found = canonical_names("x", ["backbone.layers.0.mlp.w1.qweight", "output.weight", "mtp.draft.w"], family)
    assert found == {
        "transformer.h.0.mlp.w1.qweight": "backbone.layers.0.mlp.w1.qweight",
        "output.weight": "output.weight",
    }


@pytest.mark.parametrize("equal", [True, False])
def test_a_repeated_tensor_must_equal_the_one_that_it_repeats(small_checkpoint, monkeypatch, equal):
    monkeypatch.setattr(QwenVLExport, "copies", Renaming.copies)
    head = PLAIN["lm_head.weight"].clone()
    if not equal:
        head[3, 5] += 1
    folder = small_checkpoint(tensors=PLAIN | {"output.weight": head})
    if equal:
        assert_same(Checkpoint.open(folder))
    else:
        with pytest.raises(CheckpointError, match=r"ties output.weight to lm_head.weight .* differ"):
            Checkpoint.open(folder)


def test_lists_in_messages():
    assert few(["a", "b"]) == "a, b"
    assert few([str(i) for i in range(1708)]) == "0, 1, 2 and 1,705 more"
    assert len(shortened("x" * 10_000)) == 100
    assert shortened("a\nb\x1b[31m") == "a?b?[31m"
