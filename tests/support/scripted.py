"""A bundle and a backend without weights: the backend answers with tokens that the test dictates."""

import dataclasses
from pathlib import Path

import numpy as np

from qwenvl_edge.backends.base import Backend, check_copy, check_pixels, check_placed, check_tokens, splice
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.bundle.manifest import (
    EmbeddingInfo,
    GenerationDefaults,
    Graphs,
    Manifest,
    ModelInfo,
    Precision,
    Provenance,
    Workspace,
)
from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.families import QwenVL
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.paths import DATA

TINY_VOCABULARY = DATA / "tiny" / "qwen.tiktoken"
FAMILY = QwenVL(num_ranks=2000, image_tokens=4)
MODEL = ModelInfo(
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=2304,
    seq_length=2048,
    max_position_embeddings=512,
    rope_base=10000.0,
    use_dynamic_ntk=True,
    use_logn_attn=True,
    image_size=28,
    image_tokens=4,
    image_start_id=2214,
)
GENERATION = GenerationDefaults("chatml", False, 0.3, 0, 1.0, 1.0, 64, 6144)
_tokenizer = Tokenizer(TINY_VOCABULARY, FAMILY.special_tokens)


def ids(text: str) -> list[int]:
    """Ids of an answer: grounding markup and <|im_end|> as control tokens."""
    return _tokenizer.encode(text, allowed_special=[*FAMILY.markup.tags, "<|im_end|>", "<|im_start|>", "<|endoftext|>"])


def decode(tokens) -> str:
    return _tokenizer.decode([int(token) for token in tokens])


def write_bundle(folder: Path, *, model=MODEL, generation=GENERATION, family="qwen_vl") -> Bundle:
    (folder / "qwen.tiktoken").write_bytes(TINY_VOCABULARY.read_bytes())
    rows = np.arange(model.vocab_size * model.hidden_size, dtype="<f4").reshape(model.vocab_size, -1)
    (folder / "embedding.bin").write_bytes(rows.tobytes())
    files = {name: FileInfo((folder / name).stat().st_size, "") for name in ("qwen.tiktoken", "embedding.bin")}
    embedding = EmbeddingInfo("embedding.bin", "float32", (model.vocab_size, model.hidden_size))
    manifest = Manifest(
        format=1,
        family=family,
        model=model,
        precision=Precision("fp32", "fp32", "fp32", {"vision": "fp32", "decoder": "fp32"}, 0, "", ""),
        workspace=Workspace(1, 1),
        graphs=Graphs("vision.onnx", {}),
        embedding=embedding,
        tokenizer="qwen.tiktoken",
        generation=generation,
        files=files,
        provenance=Provenance("", "", {}),
        parity={},
        sensitivity={},
    )
    return Bundle(folder, manifest)


class ScriptedCache(KVCache):
    """Remembers the embeddings that it was filled with and counts its prompts."""

    def __init__(self, model, *, batch, capacity):
        self.rows = np.zeros((capacity, model.hidden_size), np.float32)
        self.prompt = 0
        super().__init__(model, batch=batch, capacity=capacity)

    def reset(self, prefill_length, **options):
        super().reset(prefill_length, **options)
        self.prompt = prefill_length


class ScriptedBackend(Backend):
    """Checks what the engine passes and makes the next scripted token the likeliest; records prompts and pictures.

    What a cache holds is what was decoded into it: prompts are read back from there, reused prefixes included.
    """

    def __init__(self, *answers: str | list[int], model=MODEL):
        self.model = model
        self._answers = [ids(answer) if isinstance(answer, str) else answer for answer in answers]
        self._script: list[int] = []
        self.prompts: list[np.ndarray] = []
        self.encoded = 0
        self.steps = 0
        self.runner_up: int | None = None  # a second likely token, which the sampler may prefer
        self.taken: list[int] = []
        self.caches: list[ScriptedCache] = []
        self.chunks: list[int] = []  # tokens of each prefill call

    def encode_images(self, pixel_values):
        check_pixels(self.model, pixel_values)
        self.encoded += len(pixel_values)
        mean = pixel_values.mean(axis=(1, 2, 3))[:, None, None]
        return np.broadcast_to(mean, (len(mean), self.model.image_tokens, self.model.hidden_size)).astype(np.float32)

    def new_cache(self, batch, capacity):
        self.caches.append(ScriptedCache(self.model, batch=batch, capacity=capacity))
        return self.caches[-1]

    def copy_cache(self, source, target, tokens, *, row=0):
        check_copy(source, target, tokens, row)
        target.rows[:tokens] = source.rows[:tokens]
        target.length = max(target.length, tokens)

    def decode(self, cache, inputs_embeds, position_ids, write_indices, logits_indices, pictures=()):
        check_placed(pictures, inputs_embeds.shape[1], np.ndarray)
        splice(inputs_embeds, pictures)
        check_tokens(
            self.model,
            cache,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            write_indices=write_indices,
            logits_indices=logits_indices,
        )
        start, count = int(write_indices[0]), inputs_embeds.shape[1]
        assert position_ids[0].tolist() == list(range(start, start + count))
        assert start == cache.length
        cache.rows[start : start + count] = inputs_embeds[0]
        cache.length = start + count
        if cache.length < cache.prompt:
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

    def _logits(self, places):
        """Logits [1, K, V] that make the scripted tokens at `places` the likeliest; nothing behind the script's end."""
        logits = np.zeros((1, len(places), self.model.vocab_size), np.float32)
        for row, place in zip(logits[0], places, strict=True):
            if self.runner_up is not None:
                row[self.runner_up] = 0.9
            if place < len(self._script):
                row[self._script[place]] = 1.0
            row[FAMILY.decodable :] = 9.0  # unused rows, never to be chosen
        return logits

    def prompt_ids(self, index: int = -1) -> list[int]:
        """The ids of a prompt, read back from its embedding rows; -1 where a picture's features stand."""
        first = self.prompts[index][:, 0]
        whole = self.prompts[index][:, 1] == first + 1
        return [int(value) // self.model.hidden_size if ok else -1 for value, ok in zip(first, whole, strict=True)]


def engine(folder: Path, *answers, model=None, generation=None, **options):
    """An engine over scripted answers, and its backend."""
    model = dataclasses.replace(MODEL, **(model or {}))
    bundle = write_bundle(folder, model=model, generation=dataclasses.replace(GENERATION, **(generation or {})))
    backend = ScriptedBackend(*answers, model=model)
    return QwenVLEngine(bundle, backend=backend, **options), backend
