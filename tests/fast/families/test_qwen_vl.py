import json

import pytest

from qwenvl_edge.errors import BundleError
from qwenvl_edge.families import QwenVL, create_family
from support.paths import DATA

STOP = json.loads((DATA / "golden_prompts.json").read_text(encoding="utf-8"))["stop_words"]
FULL = create_family("qwen_vl", image_start_id=151857, image_tokens=256)


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


def test_image_span():
    assert FULL.image_span == [151857, *[151859] * 256, 151858]


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


def test_unknown_families_and_impossible_vocabularies(tmp_path):
    def ranks(count):
        path = tmp_path / "qwen.tiktoken"
        path.write_text("".join(f"YQ== {rank}\n" for rank in range(count)))
        return path

    with pytest.raises(BundleError, match="'qwen2_vl'"):
        create_family("qwen2_vl", image_start_id=151857, image_tokens=256)
    with pytest.raises(BundleError, match="image_start_id 7 "):
        create_family("qwen_vl", image_start_id=7, image_tokens=256)
    with pytest.raises(BundleError, match="0 image tokens"):
        create_family("qwen_vl", image_start_id=151857, image_tokens=0)
    with pytest.raises(BundleError, match=r"1999 ranks.*2000"):
        QwenVL(2000, 256).check_vocabulary(ranks(1999), 2304)
    with pytest.raises(BundleError, match="2216 vocabulary rows"):
        QwenVL(2000, 256).check_vocabulary(ranks(2000), 2216)
    QwenVL(2000, 256).check_vocabulary(ranks(2000), 2304)
    with pytest.raises(BundleError, match="No such file"):
        QwenVL(2000, 256).check_vocabulary(tmp_path / "missing", 2304)
    with pytest.raises(BundleError, match="'alpaca'"):
        FULL.stop_sequences("alpaca", lambda text: [])
