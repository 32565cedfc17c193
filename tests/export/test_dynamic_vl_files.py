"""Configuration, processor and tokenizer files of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, in the forms of their writers."""

from __future__ import annotations

import json
import shutil

import pytest

from qwenvl_edge.errors import CheckpointError, QwenVLError
from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource
from qwenvl_edge_export.families.dynamic_vl.metadata import bundled, generation_defaults, thinks
from qwenvl_edge_export.families.dynamic_vl.processor import read_processor
from qwenvl_edge_export.families.dynamic_vl.tensors import canonical, tensor_shapes
from qwenvl_edge_export.families.dynamic_vl.variants import VARIANTS
from qwenvl_edge_export.families.dynamic_vl.vocabulary import Vocabulary
from support.golden_graphs import FAMILIES, config_of, golden

TEXT_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings"),
)


def raw_config(family):
    return json.loads((golden(family) / "config.json").read_text())


def nested(raw):
    """As transformers 4.52 to 4.57 wrote it: text keys in a section, rope type "default"."""
    text = {key: raw[key] for key in TEXT_KEYS if key in raw}
    text["rope_scaling"] = raw["rope_scaling"] | {"type": "default", "rope_type": "default"}
    return {key: value for key, value in raw.items() if key not in TEXT_KEYS[:-1]} | {"text_config": text}


def of_version_5(raw):
    """As transformers 5 writes it: rope_parameters, dtype."""
    found = nested(raw)
    text = found["text_config"]
    rope = text.pop("rope_scaling")
    rope.pop("type")
    text["rope_parameters"] = rope | {"rope_theta": text.pop("rope_theta")}
    return found | {"dtype": found.pop("torch_dtype")}


@pytest.fixture
def folder(tmp_path):
    """Makes copies of a golden checkpoint's small files."""

    def copy(family):
        target = tmp_path / family
        shutil.copytree(golden(family), target, ignore=shutil.ignore_patterns("*.npz", "images", "*.safetensors"))
        return target

    return copy


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("written", [nested, of_version_5])
def test_nested_configurations_mean_the_same(family, written):
    assert DynamicVLSource.from_dict(written(raw_config(family))) == config_of(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_naming_scheme(family):
    shapes = tensor_shapes(config_of(family))
    published = [name.replace("model.visual.", "visual.").replace("language_model.", "") for name in shapes]
    if family == "qwen3_vl":
        published = list(shapes)
    assert [canonical(name) for name in published] == list(shapes) == [canonical(name) for name in shapes]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mrope_section": [2, 3, 3]}}, "YaRN"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [2, 3, 3]}}, 'rope type "linear"'),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "does not add up to half of head_dim"),
        ({"rope_scaling": {"type": "default"}}, "lacks rope_scaling.mrope_section"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act is not silu"),
        ({"num_key_value_heads": 4}, "no multiple of num_key_value_heads"),
        ({"image_token_id": 600}, "beyond vocab_size"),
        ({"hidden_size": 102}, "not as wide as the decoder"),
        ({"vocab_size": "many"}, "vocab_size is .*; it must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is"),
        ({"rope_theta": None}, "lacks rope_scaling.rope_theta"),
        ({"text_config": 3}, "text_config is not an object"),
        ({"vision_config": {}}, "the tower's output is not as wide as the decoder"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types names other than full_attention"),
        ({"vision_config": {"rope_parameters": {"rope_theta": 5000.0}}}, "rope_theta is not 10000"),
    ],
)
def test_configurations_that_are_refused(change, match):
    with pytest.raises(CheckpointError, match=match):
        DynamicVLSource.from_dict(raw_config("qwen2_vl") | change)


def test_sections_may_lack_what_the_classes_have():
    """Files that transformers wrote before version 5 lack the values that its classes have by themselves."""
    raw = raw_config("qwen2_vl")
    tower = {"in_chans": 3, "hidden_size": 96, "model_type": "qwen2_vl", "spatial_patch_size": 14}
    vision = DynamicVLSource.from_dict(raw | {"vision_config": tower}).vision
    assert (vision.depth, vision.width, vision.heads, vision.mlp_width) == (32, 1280, 16, 5120)
    raw = raw_config("qwen3_vl")
    del raw["text_config"]["head_dim"]
    raw["text_config"]["rope_scaling"]["mrope_section"] = [24, 20, 20]
    assert DynamicVLSource.from_dict(raw).text.head_dim == 128


@pytest.mark.parametrize("family", FAMILIES)
def test_the_defaults_are_those_of_transformers(family):
    """Positions are left out: transformers 5 has other ones than 4 for Qwen3-VL's rope_theta."""
    transformers = pytest.importorskip("transformers")
    defaults, variant = transformers.CONFIG_MAPPING[family]().to_dict(), VARIANTS[family]
    for section, ours in (("text_config", variant.text_defaults), ("vision_config", variant.vision_defaults)):
        assert {key: defaults[section][key] for key in ours} == ours


def test_kv_heads_that_are_null():
    raw = nested(raw_config("qwen2_vl"))
    raw["text_config"]["num_key_value_heads"] = None
    assert DynamicVLSource.from_dict(raw).text.num_kv_heads == 6


def test_windows_are_cut_to_whole_tokens():
    raw = raw_config("qwen2_5_vl")
    raw["vision_config"]["window_size"] = 100
    assert DynamicVLSource.from_dict(raw).vision.window_size == 84
    raw["vision_config"]["window_size"] = 27
    with pytest.raises(CheckpointError, match="window_size is 27, less than a token's side, 28 pixels"):
        DynamicVLSource.from_dict(raw)


@pytest.mark.parametrize(
    ("top", "section", "tied", "given"),
    [
        (True, False, True, True),
        (False, True, False, True),
        (None, True, False, False),
        (None, False, False, True),
    ],
)
def test_who_says_that_the_head_is_tied(top, section, tied, given):
    """The top level; else a section that says no. One that says yes may only repeat a default: the files decide."""
    raw = raw_config("qwen3_vl") | {"tie_word_embeddings": top}
    raw["text_config"]["tie_word_embeddings"] = section
    config = DynamicVLSource.from_dict(raw)
    assert (config.text.tied, config.tie_given) == (tied, given)


def test_head_size_is_read_not_divided():
    config = config_of("qwen3_vl")
    assert config.text.head_dim == 32 != config.text.hidden_size // config.text.num_heads
    assert tensor_shapes(config)["model.language_model.layers.0.self_attn.o_proj.weight"] == (80, 128)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_bundles_keep(family, folder):
    place, config = folder(family), config_of(family)
    processor = read_processor(place, config.vision, whole_clips=family == "qwen3_vl")
    meta = json.loads((place / "golden_meta.json").read_text())
    found = bundled(config, processor, Vocabulary(place))
    assert (found.min_pixels, found.max_pixels) == ((4096, 65536) if family == "qwen3_vl" else (3136, 50176))
    assert found.used_rows == meta["used_rows"]
    assert found.special_tokens["<|image_pad|>"] == raw_config(family)["image_token_id"]
    assert ("<tool_call>" in found.not_special) == (family != "qwen2_vl")
    assert (found.window_size, found.position_side) == {
        "qwen2_vl": (0, 0),
        "qwen2_5_vl": (112, 0),
        "qwen3_vl": (0, 12),
    }[family]
    assert not found.thinking
    Vocabulary(place).check_merges()
    defaults = generation_defaults(json.loads((place / "generation_config.json").read_text()), 4096)
    assert (defaults.chat_format, defaults.repetition_penalty) == (
        "chatml",
        1.05 if family == "qwen2_5_vl" else 1.0,
    )


def test_a_tokenizer_in_one_file(folder):
    place = folder("qwen3_vl")
    whole = Vocabulary(folder("qwen2_vl")).added
    published = Vocabulary(place)
    ranks, added = published.ranks, published.added
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (place / name).unlink()
    content = json.loads((place / "tokenizer.json").read_text())
    content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
    (place / "tokenizer.json").write_text(json.dumps(content))
    alone = Vocabulary(place)
    alone.check_merges()
    assert (alone.ranks, alone.added) == (ranks, added) and len(whole) < len(added)


def test_vocabularies_that_are_not_by_ranks(folder):
    place = folder("qwen2_vl")
    lines = (place / "merges.txt").read_text().split("\n")
    lines[3], lines[4] = lines[4], lines[3]
    (place / "merges.txt").write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match="merge number 2 makes"):
        Vocabulary(place).check_merges()
    (place / "merges.txt").write_text("\n".join(lines[:100]))
    with pytest.raises(CheckpointError, match=r"not by ranks|must be 256 fewer"):
        Vocabulary(place).check_merges()


def test_generation_settings_mean_what_transformers_means():
    """What a file leaves out is transformers' default, also in later uploads of Qwen2.5-VL: top_k is 50."""
    found = generation_defaults({"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05}, 4096)
    assert (found.top_k, found.top_p, found.temperature, found.max_window_size) == (50, 1.0, 1e-6, 4096)
    assert generation_defaults({"top_k": None}, 4096).top_k == 0
    for wrong in ({"temperature": "hot"}, {"temperature": float("nan")}, {"top_p": 1.5}, {"do_sample": 1}):
        with pytest.raises(CheckpointError, match=r"generation_config\.json: "):
            generation_defaults(wrong, 4096)


def test_an_id_that_the_tokenizer_has_elsewhere(folder):
    place = folder("qwen2_vl")
    config = DynamicVLSource.from_dict(raw_config("qwen2_vl") | {"image_token_id": 529, "video_token_id": 528})
    with pytest.raises(CheckpointError, match=r"gives <\|image_pad\|> the id 529, but the tokenizer's files 528"):
        bundled(config, read_processor(place, config.vision, whole_clips=False), Vocabulary(place))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": {"shortest_edge": 3136, "longest_edge": 60000}}, "contradicts itself: size.longest_edge is 60,000"),
        ({"patch_size": 16}, "patch_size 16, but config.json says 14"),
        ({"merge_size": 1}, "merge_size 1, but config.json says 2"),
        ({"min_pixels": 60000}, "allows 60,000 to 50,176 pixels"),
        ({"min_pixels": "few"}, "not a whole number"),
        ({"max_pixels": None}, "has no limits"),
        ({"image_mean": [0.5]}, "image_mean is not a list of three"),
        ({"rescale_factor": 1}, "rescale_factor"),
        ({"do_resize": False}, "switches do_resize off"),
        ({"do_normalize": False}, "switches do_normalize off"),
        ({"resample": 2}, "bicubic"),
        ({"size": 448}, "size is not an object"),
    ],
)
def test_processors_that_are_refused(folder, change, match):
    place = folder("qwen2_vl")
    raw = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps(raw | change))
    with pytest.raises(CheckpointError, match=match):
        read_processor(place, config_of("qwen2_vl").vision, whole_clips=False)


def test_limits_of_pictures(folder):
    place, vision = folder("qwen2_vl"), config_of("qwen2_vl").vision
    path = place / "preprocessor_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"max_pixels": 12845056}))
    processor = read_processor(place, vision, whole_clips=False)
    assert processor.max_pixels == 1280 * 28 * 28  # the ceiling of a bundle that is not asked for another
    limited = processor.limited(None, 2_000_000)
    assert (limited.min_pixels, limited.max_pixels) == (3136, 2_000_000)
    with pytest.raises(QwenVLError, match="no size is left"):
        processor.limited(5000, 4000)
    path.rename(place / "kept.json")
    kept = json.loads((place / "kept.json").read_text())
    (place / "processor_config.json").write_text(json.dumps({"image_processor": kept}))
    assert read_processor(place, vision, whole_clips=False) == processor  # as transformers 5 saves it
    (place / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks preprocessor_config.json"):
        read_processor(place, vision, whole_clips=False)


def test_thinking_is_in_the_generation_prompt():
    history = "{% for m in messages %}<think>{{ m }}</think>{% endfor %}"
    plain = history + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    assert not thinks(plain)
    assert thinks(plain.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    assert not thinks("")
