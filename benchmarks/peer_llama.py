"""llama.cpp as peers.py asks it, in the environment of the peer: a JSON list per line in, a JSON value per line out.

    .cache/peers/venv/bin/python benchmarks/peer_llama.py

    ["open", name, file, threads, context]         -> bits per weight of the file
    ["turn", name, prompt, steps]                  -> {"prefill": ms, "decode": ms of each step}
    ["open_tower", name, model, tower, threads]    -> null
    ["encode", name, width, height]                -> {"vision": ms, "tokens": tokens of the picture}
    ["tokenize", name, text]                       -> ids
    ["choices", name, ids]                         -> the likeliest id after each of `ids`, after one prefill
    ["facts"]                                      -> version and system information
A call that fails answers {"error": why}.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp

_QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)  # must live as long as the library


def loaded_model(file: str) -> Any:
    """A model in memory, not mapped, so that weights may be packed anew for this processor."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(file.encode(), params)
    if model is None:
        raise RuntimeError(f"llama.cpp cannot load {file}")
    return model


class TextModel:
    """A decoder with a cache of `context` tokens."""

    def __init__(self, file: str, threads: int, context: int):
        self.model = loaded_model(file)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if self.context is None:
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.rows = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    def bits(self) -> float:
        """Bits per weight, over all tensors."""
        return 8 * llama_cpp.llama_model_size(self.model) / llama_cpp.llama_model_n_params(self.model)

    def clear(self) -> None:
        """Forget all tokens."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def decode(self, ids: list[int], *, all_logits: bool = False) -> float:
        """Run tokens after those before, with logits of the last or of all of them; return milliseconds."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if all_logits:
            wanted = (ctypes.c_int8 * len(ids))(*([1] * len(ids)))
            batch.logits = wanted
        started = time.perf_counter()
        code = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        return (time.perf_counter() - started) * 1e3

    def turn(self, prompt: int, steps: int) -> dict[str, Any]:
        """A prompt of random tokens into an empty cache, then tokens one by one."""
        self.clear()
        ids = np.random.default_rng(0).integers(0, self.rows, prompt + steps).tolist()
        return {"prefill": self.decode(ids[:prompt]), "decode": [self.decode([id_]) for id_ in ids[prompt:]]}

    def choices(self, ids: list[int]) -> list[int]:
        """The likeliest token after each of `ids`."""
        self.clear()
        self.decode(ids, all_logits=True)
        rows = (llama_cpp.llama_get_logits_ith(self.context, i) for i in range(len(ids)))
        return [int(np.ctypeslib.as_array(row, (self.rows,)).argmax()) for row in rows]

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text; control tokens are read as such."""
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.vocabulary, raw, len(raw), ids, len(ids), False, True)
        return list(ids[:count])


class Tower:
    """A picture's side, through the binding's multimodal interface."""

    def __init__(self, model: str, tower: str, threads: int):
        self.model = loaded_model(model)
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.n_threads, params.warmup = False, False, threads, True
        self.context = mtmd_cpp.mtmd_init_from_file(tower.encode(), self.model, params)
        if self.context is None:
            raise RuntimeError(f"llama.cpp cannot load {tower}")

    def encode(self, width: int, height: int) -> dict[str, Any]:
        """A random picture, from its pixels to its features."""
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        started = time.perf_counter()
        bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, ctypes.cast(data, ctypes.POINTER(ctypes.c_uint8)))
        marker = mtmd_cpp.mtmd_default_marker()
        text = mtmd_cpp.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if code := mtmd_cpp.mtmd_tokenize(self.context, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError(f"mtmd_tokenize returned {code}")
        tokens = 0
        for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, i)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                tokens += mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
                if mtmd_cpp.mtmd_encode_chunk(self.context, chunk):
                    raise RuntimeError("mtmd_encode_chunk failed")
        spent = (time.perf_counter() - started) * 1e3
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        return {"vision": spent, "tokens": tokens}


def facts() -> dict[str, str]:
    """The binding's version and the instructions that the library was built for."""
    system = llama_cpp.llama_print_system_info().decode()
    return {"llama-cpp-python": importlib.metadata.version("llama-cpp-python"), "system": system}


def main() -> None:
    """Answer until the input ends."""
    llama_cpp.llama_log_set(_QUIET, None)
    mtmd_cpp.mtmd_log_set(_QUIET, None)
    mtmd_cpp.mtmd_helper_log_set(_QUIET, None)
    llama_cpp.llama_backend_init()
    opened: dict[str, Any] = {}
    for line in sys.stdin:
        call, *given = json.loads(line)
        try:
            answer: Any = None
            if call == "open":
                opened[given[0]] = model = TextModel(*given[1:])
                answer = model.bits()
            elif call == "open_tower":
                opened[given[0]] = Tower(*given[1:])
            elif call == "facts":
                answer = facts()
            else:
                answer = getattr(opened[given[0]], call)(*given[1:])
        except Exception as error:  # the other side says which case it was
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
