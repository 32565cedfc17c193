import dataclasses
import json

import pytest

from qwenvl_edge.bundle.manifest import FamilyInfo
from qwenvl_edge.errors import BundleError
from qwenvl_edge.families import create_family
from qwenvl_edge.families.pieces import PictureLayout, Rows, Shown
from support.paths import DATA
from support.scripted import CONFIG, FAMILY, MODEL, family_of

STOP = json.loads((DATA / "golden_prompts.json").read_text(encoding="utf-8"))["stop_words"]
FULL = family_of(151643)


def test_special_ids_of_the_published_vocabulary():
    assert FULL.num_ranks == 151643
    expected = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|extra_0|>": 151646,
        "<|extra_204|>": 151850,
        "<ref>": 151851,
        "</ref>": 151852,
        "<box>": 151853,
        "</box>": 151854,
        "<quad>": 151855,
        "</quad>": 151856,
        "<img>": 151857,
        "</img>": 151858,
        "<imgpad>": 151859,
    }
    assert {token: FULL.special_tokens[token] for token in expected} == expected
    assert sorted(FULL.special_tokens.values()) == list(range(151643, 151860))
    assert FULL.decodable == 151860


def test_a_picture_takes_its_queries_whatever_its_size():
    layout = FULL.layout((1920, 1080))
    assert layout == FULL.layout((3, 5)) == PictureLayout(256, (1, 1, 256))
    pieces = FULL.picture(Shown(0, 2, 0, layout))
    assert pieces == ["Picture 2: ", 151857, Rows(0, layout, 0, 256, 151859), 151858, "\n"]


def test_stop_sequences_are_the_published_ones_and_the_end_of_text():
    def encode(text):
        assert text == "Human:"
        return [33975, 25]

    for chat_format in ("chatml", "raw"):
        published = {tuple(sequence) for sequence in STOP[chat_format]}
        assert set(FULL.stop_sequences(chat_format, encode)) == published | {(151643,)}


def test_hidden_ids_are_all_special_tokens_but_the_markup():
    assert 151645 in FULL.hidden_ids and 151857 in FULL.hidden_ids
    assert not FULL.hidden_ids & {FULL.special_tokens[tag] for tag in FULL.markup.tags}
    assert len(FULL.hidden_ids) == 217 - 6


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("In Picture 1 there is a mug, in Picture 2 ", [1, 2]),
        ("picture 12: ", [12]),
        ("图1有杯子,图片 3", [1, 3]),
        ("第2张图中", [2]),
        ("the third one, 3 mugs, 第3个", []),
    ],
)
def test_named_pictures(text, numbers):
    assert FULL.named_pictures(text) == numbers


def test_what_a_manifest_says_is_the_family():
    info = FamilyInfo("qwen_vl", dataclasses.asdict(CONFIG))
    assert create_family(info, MODEL) == FAMILY


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("qwen9_vl", {}, "'qwen9_vl'; this version runs 'qwen_vl', 'qwen2_vl'"),
        ("qwen_vl", {"image_start_id": 7}, "image_start_id 7 "),
        ("qwen_vl", {"image_tokens": 0}, "0 image tokens"),
        ("qwen_vl", {"image_size": 0}, "image_size is 0; it must be positive"),
        ("qwen_vl", {"rope_base": float("nan")}, "rope_base: expected float, found float nan"),
        ("qwen_vl", {"use_dynamic_ntk": 1}, "use_dynamic_ntk: expected bool, found int 1"),
        ("qwen_vl", {"mrope_section": [1]}, "family.config: unknown key mrope_section"),
        ("qwen_vl", {"seq_length": ...}, "family.config: missing key seq_length"),
    ],
)
def test_impossible_families(name, changes, error):
    config = {key: value for key, value in (dataclasses.asdict(CONFIG) | changes).items() if value is not ...}
    with pytest.raises(BundleError, match=error):
        create_family(FamilyInfo(name, config), MODEL)


def test_vocabularies(tmp_path):
    family = family_of(2000)
    with pytest.raises(BundleError, match=r"1999 ranks.*2000"):
        family.check_vocabulary(1999, 2304)
    with pytest.raises(BundleError, match="2216 vocabulary rows"):
        family.check_vocabulary(2000, 2216)
    family.check_vocabulary(2000, 2217)
    path = tmp_path / "qwen.tiktoken"
    with pytest.raises(BundleError, match=r"qwen\.tiktoken.*No such file"):
        family.read_vocabulary(path)
    path.write_bytes(b"IQ== 0\n")
    assert family.read_vocabulary(path) == b"IQ== 0\n"


def test_unknown_chat_formats():
    with pytest.raises(BundleError, match="'alpaca'"):
        FULL.stop_sequences("alpaca", lambda text: [])
