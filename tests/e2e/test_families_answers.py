"""Bundles of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: what the engine answers, against tensors that transformers computed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_edge import BackendError, Constraint, QwenVLEngine, Video
from qwenvl_edge.backends.memory_estimate import estimate_memory
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.session import can_run
from qwenvl_edge.bundle.contract import DEEPSTACK_FEATURES, IMAGE_FEATURES, NATIVE, ONNXRUNTIME, STANDARD
from qwenvl_edge.families.pieces import PixelLimits
from support.conversations import WORDS, check_conversations, examples
from support.families import (
    FAMILIES,
    FRAME_TIMES,
    conversation_of,
    golden,
    golden_json,
    greedy,
    load,
    picture_file,
    prefilled,
)

PROMPTS = ("one", "two", "text", "video2", "video5", "mixed")
LOGITS, FEATURES = 2e-4, 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def exports(name, family_exports):
    return family_exports(name)


@pytest.fixture(scope="module")
def bundle(exports):
    return exports()


@pytest.fixture(scope="module")
def engine(bundle):
    return QwenVLEngine(bundle, threads=1)


def tokens(reply):
    return [each.id for each in reply.logprobs]


def question(name, prompt):
    """The arguments of chat for a golden prompt."""
    message, history, system = conversation_of(name, prompt)
    return {"message": message, "history": history, "system": system}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_the_recorded_ones(engine, name, prompt):
    reply = engine.chat(**question(name, prompt), **greedy(name))
    assert tokens(reply) == golden_json(name, "meta")["prompts"][prompt]["greedy"]


@pytest.mark.parametrize("dialect", [STANDARD, ONNXRUNTIME])
def test_features_and_logits_of_every_dialect(bundle, name, dialect):
    if not can_run(dialect):
        pytest.skip(f"this machine does not run {dialect}")
    backend = OnnxRuntimeBackend(bundle, threads=1, dialect=dialect)
    recorded = golden(name, "vision")
    for letter in "abcdef":
        found = backend.run_vision(load(picture_file(name, letter)).vision_inputs(backend.family))
        np.testing.assert_allclose(found[IMAGE_FEATURES][0], recorded[f"{letter}.features"], rtol=0, atol=FEATURES)
        if name == "qwen3_vl":
            deep = found[DEEPSTACK_FEATURES][:, 0]
            np.testing.assert_allclose(deep, recorded[f"{letter}.deepstack"], rtol=0, atol=FEATURES)
    for prompt in PROMPTS:
        wanted = golden(name, "text")[f"{prompt}.logits"]
        np.testing.assert_allclose(prefilled(backend, bundle, name, prompt, ()), wanted, rtol=0, atol=LOGITS)


def test_a_prompt_may_be_cut_everywhere(bundle, name):
    """Between words, at the edges of a picture and inside it."""
    backend = OnnxRuntimeBackend(bundle, threads=1)
    wanted = golden(name, "text")["one.logits"]
    for cut in range(1, len(wanted)):
        found = prefilled(backend, bundle, name, "one", [cut])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS, err_msg=f"cut at {cut}")


@pytest.mark.parametrize("chunk", [1, 5, 128])
def test_a_batch_of_three_with_different_pictures(bundle, name, chunk):
    engine = QwenVLEngine(bundle, threads=1, prefill_chunk=chunk)
    asked = ["one", "video5", "two"]
    replies = engine.chat_many([question(name, prompt) for prompt in asked], max_batch=3, **greedy(name))
    for prompt, reply in zip(asked, replies, strict=True):
        assert tokens(reply) == golden_json(name, "meta")["prompts"][prompt]["greedy"]


def test_all_other_dialects_and_precisions_answer(exports, name):
    """Quantized bundles answer something; how near they are is the exporter's tests' matter."""
    for precision in ("int8", "int4"):
        small = exports(precision)
        assert NATIVE in small.manifest.graphs.decoder or ONNXRUNTIME in small.manifest.graphs.decoder
        reply = QwenVLEngine(small, threads=1).chat(**question(name, "mixed"), **greedy(name))
        assert reply.stats.new_tokens == 12


def test_grounding_is_held_to_the_familys_notation(engine, name):
    pytest.importorskip("llguidance")
    reply = engine.ground(picture_file(name, "c"), "the box", constraint=Constraint.boxes(), max_new_tokens=200)
    assert reply.complete and reply.boxes and not reply.malformed
    assert reply.draw().size == reply.pictures[0].size


def test_a_picture_that_memory_does_not_hold_is_refused(bundle, engine, name, monkeypatch):
    monkeypatch.setattr("qwenvl_edge.backends.onnxruntime.cpu.available_bytes", lambda: 1000)
    large = np.zeros((900, 900, 3), np.uint8)
    with pytest.raises(BackendError, match=r"a picture of [\d,]+ tokens takes .* GB to encode"):
        engine.chat("?", images=[large], max_pixels=900 * 900)
    assert engine.chat("?", images=[large], max_new_tokens=1).stats.images_encoded == 1  # as large as the bundle says
    plain, more = (
        estimate_memory(bundle, max_context=64, limits=PixelLimits(max_pixels=each)) for each in (None, 10**6)
    )
    assert more.picture > 10 * plain.picture and more.kept > plain.kept


SHAPES = ((30, 60), (100, 64), (57, 57), (61, 300))
PICTURES = [np.random.default_rng(seed).integers(0, 256, (*SHAPES[seed], 3), np.uint8) for seed in range(4)]
MOVING = [Video([PICTURES[0], PICTURES[0][::-1], PICTURES[0]], fps=fps) for fps in (2, 0.5)]
VISUALS = [
    *({"image": picture} for picture in PICTURES),
    {"image": PICTURES[3], "max_pixels": 8192},
    *({"video": video} for video in MOVING),
]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 3),
        st.lists(st.integers(0, len(VISUALS) - 1), max_size=2),
        st.sampled_from(WORDS),
        st.integers(1, 25),
    ),
    min_size=2,
    max_size=6,
)


@pytest.fixture(scope="module")
def reusing(bundle):
    """Engines that keep prefixes and pictures, and one that is made to forget."""
    options = {"threads": 1, "max_context": 700}
    kept = {chunk: QwenVLEngine(bundle, prefill_chunk=chunk, **options) for chunk in (1, 7, 64)}
    return kept, QwenVLEngine(bundle, prefill_chunk=700, **options)


@given(STEPS, st.sampled_from([1, 7, 64]), st.booleans())
@settings(max_examples=examples(25), deadline=None)
def test_random_conversations(reusing, steps, chunk, sampled):
    """Reuse, chunks and look-up decoding change nothing."""

    def turn(number, step, conversations):
        branch, turns, visuals, words, length = step
        history = conversations[branch % len(conversations)][-turns or None :]
        options = {"do_sample": sampled, "seed": number, "top_p": 1.0, "top_k": 0, "max_new_tokens": length}
        return [*(VISUALS[each] for each in visuals), {"text": words}], history, options

    check_conversations(reusing[0][chunk], reusing[1], steps, turn)


def test_the_conversations_do_reuse(reusing):
    """Guards the test above; the clips have the same frames at other times."""
    kept = reusing[0][7]
    kept.forget()
    greedy_options = {"do_sample": False, "max_new_tokens": 2}
    first = kept.chat([VISUALS[1], VISUALS[5], {"text": "?"}], **greedy_options)
    again = kept.chat([VISUALS[1], VISUALS[5], {"text": "!"}], **greedy_options)
    assert again.stats.images_encoded == 0 and again.stats.reused_tokens > first.stats.image_tokens
    later = kept.chat([VISUALS[1], VISUALS[6], {"text": "?"}], **greedy_options)
    assert later.stats.reused_tokens >= first.stats.image_tokens // 4


ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, len(VISUALS) - 1), max_size=2),
        st.lists(st.integers(0, len(VISUALS) - 1), max_size=1),
        st.sampled_from(WORDS),
        st.integers(1, 12),
        st.booleans(),
    ),
    min_size=2,
    max_size=5,
)


@given(ROWS, st.integers(2, 4), st.sampled_from([7, 64]))
@settings(max_examples=examples(12), deadline=None)
def test_rows_of_a_batch_with_different_pictures_are_as_if_alone(reusing, rows, most, chunk):
    """Pictures of other sizes, clips, and positions that have moved apart, decoded together."""
    together, alone = reusing[0][chunk], reusing[1]
    together.forget()
    asked = [
        {
            "message": [*(VISUALS[each] for each in visuals), {"text": words}],
            "history": [([*(VISUALS[each] for each in earlier), {"text": "?"}], "yes")] if earlier else [],
            "max_new_tokens": length,
            "do_sample": sampled,
            "seed": number,
            "top_p": 1.0,
            "top_k": 0,
        }
        for number, (visuals, earlier, words, length, sampled) in enumerate(rows)
    ]
    replies = together.chat_many(asked, max_batch=most)
    for arguments, reply in zip(asked, replies, strict=True):
        alone.forget()
        expected = alone.chat(**arguments, lookup=False)
        assert (reply.raw_text, reply.finish_reason) == (expected.raw_text, expected.finish_reason)
        assert reply.stats.image_tokens == expected.stats.image_tokens


def test_the_golden_clips_have_known_times():
    assert set(FRAME_TIMES) == {"video2", "video5", "mixed"}
