"""A bundle and a backend without weights: the backend answers with the tokens that a test gives it."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from qwenvl_edge.backends.base import Backend, DeepFeatures, KVCache, splice
from qwenvl_edge.backends.checks import check_copy, check_placed, check_tokens
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    DEEPSTACK,
    INPUTS_EMBEDS,
    LOGITS_INDICES,
    PIXEL_VALUES,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    WRITE_INDICES,
)
from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.bundle.manifest import FamilyInfo, GenerationDefaults
from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.families.base import RotaryRows
from qwenvl_edge.families.qwen_vl import QwenVLBundleConfig, QwenVLFamily
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.manifests import make_manifest, make_model
from support.paths import DATA

TINY_VOCABULARY = DATA / "tiny" / "qwen.tiktoken"
TINY_RANKS = TINY_VOCABULARY.read_bytes()
CONFIG = QwenVLBundleConfig(
    image_start_id=2214,
    image_tokens=4,
    image_size=28,
    seq_length=2048,
    rope_base=10000.0,
    use_dynamic_ntk=True,
    use_logn_attn=True,
)
MODEL = make_model()
FAMILY = QwenVLFamily(CONFIG, MODEL.head_dim)
GENERATION = GenerationDefaults("chatml", False, 0.3, 0, 1.0, 1.0, 64, 6144)
_tokenizer = Tokenizer(TINY_VOCABULARY, FAMILY.special_tokens)


def family_of(num_ranks: int, *, image_tokens: int = 256, head_dim: int = 128, **config) -> QwenVLFamily:
    """The family for a vocabulary of so many BPE ranks, before which nothing else stands; config: as in CONFIG."""
    changes = {"image_start_id": num_ranks + 214, "image_tokens": image_tokens, **config}
    return QwenVLFamily(dataclasses.replace(CONFIG, **changes), head_dim)


def ids(text: str) -> list[int]:
    """Ids of an answer: grounding markup and <|im_end|> as control tokens."""
    return _tokenizer.encode(text, allowed_special=[*FAMILY.markup.tags, "<|im_end|>", "<|im_start|>", "<|endoftext|>"])


def decode(tokens) -> str:
    return _tokenizer.decode([int(token) for token in tokens])


def write_bundle(
    folder: Path,
    *,
    model=MODEL,
    generation=GENERATION,
    family="qwen_vl",
    config=CONFIG,
    vocabulary=("qwen.tiktoken", TINY_RANKS),
) -> Bundle:
    tokenizer, contents = vocabulary
    (folder / tokenizer).write_bytes(contents)
    rows = np.arange(model.vocab_size * model.hidden_size, dtype="<f4").reshape(model.vocab_size, -1)
    (folder / "embedding.bin").write_bytes(rows.tobytes())
    files = {name: FileInfo((folder / name).stat().st_size, "") for name in (tokenizer, "embedding.bin")}
    info = FamilyInfo(family, json.loads(json.dumps(dataclasses.asdict(config))))
    manifest = make_manifest(model, info, files, generation=generation, tokenizer=tokenizer)
    return Bundle(folder, manifest)


class ScriptedCache(KVCache):
    """Remembers the embeddings that it was filled with and counts its prompts."""

    def __init__(self, model, *, batch, capacity):
        self.rows = np.zeros((capacity, model.hidden_size), np.float32)
        self.prompt = 0
        super().__init__(model, batch=batch, capacity=capacity)

    def reset(self, positions, **options):
        super().reset(positions, **options)
        self.prompt, self.positions = positions.length, positions


class ScriptedBackend(Backend):
    """Checks the engine's arguments and makes the next scripted token the likeliest; records prompts and pictures.

    A cache holds the embeddings that were decoded into it; prompts are read from there, reused prefixes included.
    """

    def __init__(self, *answers: str | list[int], model=MODEL, family=FAMILY):
        self.model = model
        self.family = family
        self.features_type = DeepFeatures if model.deepstack_layers else np.ndarray
        self._answers = [ids(answer) if isinstance(answer, str) else answer for answer in answers]
        self._script: list[int] = []
        self.prompts: list[np.ndarray] = []
        self.encoded = 0
        self.steps = 0
        self.runner_up: int | None = None  # a second likely token, which the sampler may prefer
        self.taken: list[int] = []
        self.caches: list[ScriptedCache] = []
        self.chunks: list[int] = []  # tokens of each prefill call

    def encode(self, picture):
        self.encoded += 1
        mean = picture.vision_inputs(self.family)[PIXEL_VALUES].mean()
        rows = np.full((picture.layout(self.family).tokens, self.model.hidden_size), mean, np.float32)
        layers = self.model.deepstack_layers
        return DeepFeatures(rows, np.stack([rows + 1 + i for i in range(layers)])) if layers else rows

    def new_cache(self, batch, capacity):
        self.caches.append(ScriptedCache(self.model, batch=batch, capacity=capacity))
        return self.caches[-1]

    def copy_cache(self, source, target, tokens, *, row=0):
        check_copy(source, target, tokens, row)
        target.rows[:tokens] = source.rows[:tokens]
        target.length = max(target.length, tokens)

    def _decode(self, cache, inputs, pictures, length):
        rotary = RotaryRows(inputs[ROPE_COS], inputs[ROPE_SIN], inputs.get(QUERY_SCALE))
        arguments = {name: inputs[name] for name in (INPUTS_EMBEDS, WRITE_INDICES, LOGITS_INDICES)}
        check_tokens(self.model, cache, rotary=rotary, **arguments)
        check_placed(pictures, inputs[INPUTS_EMBEDS].shape[1], self.features_type)
        inputs_embeds, logits_indices = inputs[INPUTS_EMBEDS], inputs[LOGITS_INDICES]
        spliced = dict(inputs)
        splice(spliced, pictures)
        self._check_deepstack(spliced, pictures)
        start, count = int(inputs[WRITE_INDICES][0]), inputs_embeds.shape[1]
        for found, wanted in zip(rotary, cache.positions.rows(start, count), strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert (start, start + count) == (cache.length, length)
        cache.rows[start:length] = inputs_embeds[0]
        if length < cache.prompt:
            assert logits_indices.shape == (1, 0)
            self.chunks.append(count)
            return np.zeros((1, 0, self.model.vocab_size), np.float32)
        if start < cache.prompt:
            assert logits_indices.tolist() == [[count - 1]]
            self.chunks.append(count)
            self.prompts.append(cache.rows[: cache.prompt].copy())
            self._script = list(self._answers.pop(0))
        else:
            assert logits_indices.tolist() == [list(range(count - logits_indices.shape[1], count))]
            self.taken.append(int(inputs_embeds[0, 0, 0]) // self.model.hidden_size)
            assert self.runner_up is not None or self.taken[-1] == self._script[start - cache.prompt]
        self.steps += 1
        return self._logits([start + int(i) + 1 - cache.prompt for i in logits_indices[0]])

    def _check_deepstack(self, inputs, pictures):
        """The rows of pictures, and no others, have what belongs to each layer."""
        if not self.model.deepstack_layers:
            assert DEEPSTACK not in inputs
            return
        wanted = np.zeros((self.model.deepstack_layers, *inputs[INPUTS_EMBEDS].shape), np.float32)
        for each in pictures:
            own = each.features.deepstack[:, each.first : each.first + each.count]
            wanted[:, 0, each.at : each.at + each.count] = own
        np.testing.assert_array_equal(*np.broadcast_arrays(inputs[DEEPSTACK], wanted))

    def _clear(self, cache):
        cache.rows[:] = 0

    def _logits(self, places):
        """Logits [1, K, V] that make the scripted tokens at `places` the likeliest; nothing behind the script's end."""
        logits = np.zeros((1, len(places), self.model.vocab_size), np.float32)
        for row, place in zip(logits[0], places, strict=True):
            if self.runner_up is not None:
                row[self.runner_up] = 0.9
            if place < len(self._script):
                row[self._script[place]] = 1.0
            row[self.family.decodable :] = 9.0  # unused rows, never to be chosen
        return logits

    def prompt_ids(self, index: int = -1) -> list[int]:
        """The ids of a prompt, read back from its embedding rows; -1 where a picture's features stand."""
        first = self.prompts[index][:, 0]
        whole = self.prompts[index][:, 1] == first + 1
        return [int(value) // self.model.hidden_size if ok else -1 for value, ok in zip(first, whole, strict=True)]


def engine(folder: Path, *answers, model=None, config=None, generation=None, **options):
    """An engine over scripted answers, and its backend; model, config and generation: what differs from the usual."""
    model = dataclasses.replace(MODEL, **(model or {}))
    bundle = write_bundle(
        folder,
        model=model,
        config=dataclasses.replace(CONFIG, **(config or {})),
        generation=dataclasses.replace(GENERATION, **(generation or {})),
    )
    backend = ScriptedBackend(*answers, model=model)
    return QwenVLEngine(bundle, backend=backend, **options), backend
