"""Types of the native core; qwenvl_edge.inputs.tokenizer, .inputs.pictures and .decoding.sampler document it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Ids = Sequence[int] | npt.NDArray[np.integer]

class Tokenizer:
    def __init__(self, vocabulary: bytes, special_tokens: Mapping[str, int], linear_after: int = ...) -> None: ...
    def encode(self, text: str, allowed: Sequence[str] | None) -> list[int]: ...
    def count(self, text: str, allowed: Sequence[str] | None) -> int: ...
    def decode(self, ids: _Ids, errors: str) -> str: ...
    def decode_bytes(self, ids: _Ids) -> bytes: ...
    @property
    def rank_count(self) -> int: ...

class IncrementalDecoder:
    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ...) -> None: ...
    def push(self, id: int) -> str: ...
    def finish(self) -> str: ...
    @property
    def stopped(self) -> str | None: ...

class Sampler:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: Sequence[tuple[int, float]],
        banned_ids: Sequence[int],
        seed: int,
    ) -> None: ...
    def sample(
        self,
        logits: npt.NDArray[Any],
        previous: _Ids | None,
        prompt_size: int,
        allowed: npt.NDArray[np.bool_] | bytes | None,
    ) -> int: ...
    def distribution(
        self,
        logits: npt.NDArray[Any],
        previous: _Ids | None,
        prompt_size: int,
        allowed: npt.NDArray[np.bool_] | bytes | None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
    def log_prob(self, logits: npt.NDArray[Any], id: int) -> float: ...
    def top_log_probs(self, logits: npt.NDArray[Any], count: int) -> list[tuple[int, float]]: ...

def pixel_values(
    pixels: npt.NDArray[np.uint8],
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    layout: str,
) -> npt.NDArray[np.float32]: ...
def write_patch_values(
    pixels: npt.NDArray[np.uint8],
    values: npt.NDArray[np.float32],
    grid: tuple[int, int],
    patch: int,
    merge: int,
    times: int,
    filled: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    layout: str,
) -> None: ...
def bicubic_axis(
    input: int, output: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]: ...
def surely_normal(text: str) -> bool: ...
def kernel_variants() -> list[str]: ...
def use_kernels(name: str) -> None: ...
def multiply_variants() -> list[str]: ...
def multiply_variant() -> str: ...
def use_multiply(name: str) -> None: ...

class MemoryReader:
    """Memory of its own that threads read as fast as this machine can: the limit of what reads its weights once."""

    def __init__(self, bytes: int, threads: int) -> None: ...
    @property
    def bytes(self) -> int: ...
    def gb_s(self, streams: int, ahead: int) -> float:
        """Gigabytes per second of one reading, in 1, 4, 8 or 16 streams per thread, each fetched `ahead` bytes ahead.

        Raises:
            ValueError: another number of streams.
        """

    def best_gb_s(self, repeats: int) -> float:
        """Gigabytes per second of the fastest of sixteen ways of reading, each tried `repeats` times."""
