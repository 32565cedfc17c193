"""Logits of every float type and layout."""

import numpy as np
import pytest

from qwenvl_edge import _core
from qwenvl_edge.decoding.sampler import BFLOAT16, Sampler
from qwenvl_edge.errors import BackendError
from qwenvl_edge.inputs.options import SamplingParams


@pytest.fixture(params=_core.kernel_variants())
def kernels(request):
    _core.use_kernels(request.param)
    yield
    _core.use_kernels(_core.kernel_variants()[0])


def row_of(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def to_bfloat16(row: np.ndarray) -> np.ndarray:
    """The upper halves: truncation, which is enough for a test."""
    return (row.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def all_results(logits, count: int = 5) -> list:
    sampler = Sampler(SamplingParams(seed=3, top_p=0.9, repetition_penalty=1.2))
    tokens = [sampler.sample(logits, [1, 2, 3]) for _ in range(count)]
    ids, probabilities = sampler.distribution(logits)
    return [tokens, ids.tolist(), probabilities.tolist(), sampler.log_prob(logits, 1), sampler.top_log_probs(logits, 4)]


def seen_values(logits: np.ndarray) -> np.ndarray:
    """What the core reads: log-probabilities beside a 0 are the logits themselves less a constant."""
    sampler = Sampler(SamplingParams())
    return np.array([sampler.log_prob(logits, i) for i in range(len(logits))])


@pytest.mark.usefixtures("kernels")
def test_every_float16_is_widened_exactly():
    bits = np.arange(0x10000, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))].view(np.float16)
    for part in np.array_split(finite, 64):
        np.testing.assert_array_equal(seen_values(part[:200]), seen_values(part[:200].astype(np.float32)))
    assert all_results(finite) == all_results(finite.astype(np.float32))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1023, 20_011])
def test_narrow_logits_are_sampled_as_their_float32_values(size):
    row = np.concatenate([row_of(size), np.float32([0, 1, 2, 3, -np.inf])])
    assert all_results(row.astype(np.float16)) == all_results(row.astype(np.float16).astype(np.float32))
    assert all_results(to_bfloat16(row)) == all_results(widened(to_bfloat16(row)))


def test_subnormal_and_infinite_values():
    tiny = np.array([0x0001, 0x03FF, 0x8001, 0x0400, 0xFC00], np.uint16)
    narrow = tiny.view(np.float16)
    np.testing.assert_array_equal(seen_values(narrow), seen_values(narrow.astype(np.float32)))
    for bad in (0x7C00, 0x7C01, 0xFE00):
        with pytest.raises(BackendError, match="NaN or"):
            Sampler(SamplingParams()).sample(np.array([0, bad], np.uint16).view(np.float16))
    for bad in (0x7F80, 0x7FC0, 0xFF81):
        with pytest.raises(BackendError, match="NaN or"):
            Sampler(SamplingParams()).sample(np.array([0, bad], np.uint16).view(BFLOAT16))


def test_bfloat16_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    row = row_of(3000).astype(ml_dtypes.bfloat16)
    assert all_results(row) == all_results(row.astype(np.float32)) == all_results(row.view(BFLOAT16))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_rows_with_strides_are_read_in_place(dtype):
    matrix = row_of(4 * 3000).reshape(3000, 4)
    matrix = to_bfloat16(matrix.ravel()).reshape(3000, 4) if dtype == BFLOAT16 else matrix.astype(dtype)
    before = matrix.tobytes()
    for view in (matrix[:, 1], matrix[::-1, 2], matrix[::7, 3], np.broadcast_to(matrix[5, :1], 50)):
        assert all_results(view) == all_results(np.ascontiguousarray(view))
    assert matrix.tobytes() == before


def test_unaligned_rows():
    row = row_of(100)
    unaligned = np.frombuffer(b"x" + row.tobytes(), np.uint8)[1:].view(np.float32)
    assert not unaligned.flags.aligned
    assert all_results(unaligned) == all_results(row)


@pytest.mark.parametrize("dtype", [">f4", ">f2", np.float64, np.uint16, "V2", [("half", np.uint16)]])
def test_other_types_are_refused(dtype):
    with pytest.raises(TypeError, match="float32, float16 or bfloat16"):
        Sampler(SamplingParams()).sample(np.zeros(4, dtype))


def test_ids_that_change_while_they_are_read():
    class Shrinks:
        def __index__(self):
            ids.clear()
            return 1

    ids = [Shrinks(), 2, 3]
    with pytest.raises(BackendError, match="changed while"):
        Sampler(SamplingParams(repetition_penalty=2)).sample(np.zeros(5, np.float32), ids)
