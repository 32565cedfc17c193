"""What fine-tunes change beside the weights: their own tokens, a chat format that stayed "raw", generation defaults."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwenvl_edge.errors import BundleError, CheckpointError
from qwenvl_edge.families import open_family
from qwenvl_edge.families.qwen_vl import QwenVLBundleConfig, QwenVLFamily
from qwenvl_edge.inputs.tokenizer import open_tokenizer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.qwen_vl.metadata import generation_defaults
from support.random_checkpoint import GENERATION, RANKS, config_dict

FIRST = RANKS + 217  # the first id after the published special tokens


def added(folder, decoder=None, plain=None):
    if decoder is not None:
        entries = {str(id_): {"content": text, "special": special} for id_, (text, special) in decoder.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": entries}))
    if plain is not None:
        (folder / "added_tokens.json").write_text(json.dumps(plain))
    return folder


def vocabulary(bundle):
    family = open_family(bundle.manifest)
    return family, open_tokenizer(family, bundle.file(bundle.manifest.tokenizer), bundle.manifest.model.vocab_size)


def test_added_tokens_are_encoded_decoded_and_sampled(small_checkpoint, tmp_path):
    folder = small_checkpoint(raw=config_dict(vocab_size=512))
    added(
        folder, {FIRST: ("<go>", True), FIRST + 1: ("<stop>", False), RANKS + 5: ("<left>", True)}, {"<up>": FIRST + 2}
    )
    notes: list[str] = []
    bundle = export(folder, tmp_path / "bundle", check=False, note=notes.append)
    assert any("adds 4 tokens (<left>, <go>, <stop> and 1 more)" in note for note in notes)
    family, tokenizer = vocabulary(bundle)
    ids = {"<go>": FIRST, "<stop>": FIRST + 1, "<up>": FIRST + 2, "<left>": RANKS + 5}
    for text, id_ in ids.items():
        assert tokenizer.encode(f"a{text}b", allowed_special=family.markup_tags) == [97, id_, 98]
        assert tokenizer.encode(text) != [id_]  # a user's words stay words
        assert tokenizer.decode([id_]) == text
        assert id_ not in family.hidden_ids and id_ < family.decodable
    assert family.decodable == FIRST + 3
    assert "<|extra_2|>" not in family.special_tokens


def test_ids_between_added_tokens_can_be_decoded(small_checkpoint, tmp_path):
    folder = added(small_checkpoint(raw=config_dict(vocab_size=512)), plain={"<go>": FIRST + 3})
    family, tokenizer = vocabulary(export(folder, tmp_path / "bundle", check=False))
    assert [tokenizer.decode([FIRST + i]) for i in (0, 3)] == [f"<|unused_{FIRST}|>", "<go>"]
    assert FIRST in family.hidden_ids


def test_published_tokens_among_the_added_ones_change_nothing(small_checkpoint):
    tokens = {"<|endoftext|>": RANKS, "<|im_start|>": RANKS + 1, "<imgpad>": FIRST - 1}
    checkpoint = Checkpoint.open(added(small_checkpoint(), plain=tokens))
    assert checkpoint.family.added == ()
    assert checkpoint.notes == ()


@pytest.mark.parametrize(
    ("decoder", "plain", "match"),
    [
        (None, {"<go>": 480}, r"adds 1 token \(<go>\) with ids from 480 on, but its model has 480 rows"),
        (None, {"<go>": 12}, "id 12, which belongs to another token"),
        (None, {"<go>": RANKS}, f"id {RANKS}, which belongs to another token"),
        (None, {"<img>": FIRST}, "exists already under another id"),
        (None, {"<go>": "three"}, "is not a text with an id"),
        (None, {"<go>": -1}, "is not a text with an id"),
        ({FIRST: ("<go>", True)}, {"<halt>": FIRST}, f'gives the id {FIRST} to two tokens, "<go>" and "<halt>"'),
        ({FIRST: ("<go>", True)}, {"<go>": FIRST + 1}, 'gives two ids to the token "<go>"'),
        ({FIRST: (None, True)}, None, "is not a text with an id"),
    ],
)
def test_added_tokens_that_cannot_be(small_checkpoint, decoder, plain, match):
    with pytest.raises(CheckpointError, match=match):
        Checkpoint.open(added(small_checkpoint(), decoder, plain))


def test_rows_without_tokens_are_told(small_checkpoint):
    (note,) = Checkpoint.open(small_checkpoint(raw=config_dict(vocab_size=700))).notes
    assert "has 227 vocabulary rows without a token, which are never sampled" in note


def test_a_familys_added_tokens_are_checked():
    start = FIRST - 3

    def family(*tokens):
        return QwenVLFamily(QwenVLBundleConfig(start, 4, 28, 16, 1e4, True, True, tokens), 32)

    assert family(("<go>", FIRST)).special_tokens["<go>"] == FIRST
    for tokens in ((("a", FIRST), ("b", FIRST)), (("a", FIRST), ("a", FIRST + 1)), (("", FIRST),), (("x", 1 << 23),)):
        with pytest.raises(BundleError, match="added token"):
            family(*tokens)


def test_a_raw_chat_format_is_told_with_the_remedy(small_checkpoint, tmp_path):
    folder, notes = small_checkpoint(generation=GENERATION | {"chat_format": "raw"}), []
    bundle = export(folder, tmp_path / "raw", check=False, note=notes.append)
    assert bundle.manifest.generation.chat_format == "raw"
    assert "a base model: its bundle continues text" in notes[0] and "--chat-format chatml" in notes[0]
    again = export(folder, tmp_path / "chat", check=False, note=notes.append, chat_format="chatml")
    assert again.manifest.generation.chat_format == "chatml"
    assert len(notes) == 1


def test_a_missing_chat_format_can_be_given(small_checkpoint, tmp_path):
    folder = small_checkpoint()
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks generation_config.json.*--chat-format"):
        export(folder, tmp_path / "bundle", check=False)
    assert not (tmp_path / "bundle").exists()
    kept = export(folder, tmp_path / "bundle", check=False, chat_format="chatml").manifest.generation
    assert (kept.chat_format, kept.do_sample, kept.max_new_tokens) == ("chatml", False, 512)


CHATML = {"chat_format": "chatml"}


def test_absent_settings_are_those_of_transformers():
    kept = generation_defaults(CHATML)
    assert not kept.do_sample
    assert (kept.top_k, kept.top_p, kept.temperature, kept.repetition_penalty) == (50, 1.0, 1.0, 1.0)
    assert (kept.max_new_tokens, kept.max_window_size) == (512, 6144)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"do_sample": True, "top_k": None}, {"top_k": 0}),
        ({"top_p": None, "temperature": None}, {"top_p": 1.0, "temperature": 1.0}),
        ({"max_length": 200}, {"max_new_tokens": 200}),
        ({"max_length": 200, "max_new_tokens": 64}, {"max_new_tokens": 64}),
        ({"top_k": 0, "top_p": 0.3, "do_sample": True}, {"top_k": 0, "top_p": 0.3, "do_sample": True}),
        ({"temperature": 1}, {"temperature": 1.0}),
    ],
)
def test_given_settings(raw, expected):
    kept = generation_defaults(CHATML | raw)
    assert {name: getattr(kept, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": 0}, "top_p is 0"),
        ({"temperature": 0.0, "do_sample": True}, "temperature is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"do_sample": "yes"}, 'do_sample is "yes"'),
        ({"max_new_tokens": float("inf")}, "max_new_tokens is Infinity"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is NaN"),
        ({"chat_format": "llama"}, 'chat_format is "llama"; it must be "chatml"'),
    ],
)
def test_settings_that_cannot_be(raw, match):
    with pytest.raises(CheckpointError, match=match):
        generation_defaults(CHATML | raw)


def test_settings_that_a_bundle_does_not_apply_are_told(small_checkpoint):
    raw = GENERATION | {"num_beams": 4, "no_repeat_ngram_size": 3, "typical_p": 1.0, "eta_cutoff": 0.0, "min_length": 0}
    (note,) = Checkpoint.open(small_checkpoint(generation=raw)).notes
    assert "sets num_beams, no_repeat_ngram_size, which a bundle does not apply" in note


def test_an_added_token_is_sampled(small_checkpoint, tmp_path):
    """The head prefers the new token wherever it may, and the engine writes it."""
    from qwenvl_edge.engine import QwenVLEngine
    from support.random_checkpoint import random_tensors

    raw = config_dict(vocab_size=512)
    tensors = random_tensors(raw)
    tensors["lm_head.weight"][:] = 0
    tensors["lm_head.weight"][FIRST] = tensors["lm_head.weight"].new_ones(())
    tensors["transformer.ln_f.weight"][:] = 0
    tensors["transformer.ln_f.weight"][0] = 1
    tensors["lm_head.weight"][FIRST + 1] = -1
    folder = added(small_checkpoint(raw=raw, tensors=tensors), plain={"<go>": FIRST, "<back>": FIRST + 1})
    engine = QwenVLEngine(export(folder, tmp_path / "bundle", check=False).path, threads=1)
    reply = engine.chat("x", images=[np.zeros((9, 9, 3), np.uint8)], do_sample=False, max_new_tokens=3)
    assert set(reply.text.replace("><", "> <").split()) <= {"<go>", "<back>"} and reply.text
