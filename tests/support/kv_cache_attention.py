"""The op KVCacheAttention as tests see it: random calls, its C interface, and its definition in float64.

Runs on any torch device: the emulated kernels take host memory, the real ones a GPU's.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

FLOATS = (torch.float16, torch.bfloat16)
SIDES = ("key", "value")
# Of the largest value: rounding of queries, probabilities and results, 11 and 8 bits wide.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Case:
    """Sizes of a call. `lengths`: tokens that each row of the batch has in the cache already."""

    tokens: int
    lengths: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 64
    capacity: int = 256
    dtype: torch.dtype = torch.float16
    int8: bool = False

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.") + "-int8" * self.int8
        return (
            f"T{self.tokens}-at{'+'.join(map(str, self.lengths))}-h{self.heads}:{self.kv_heads}x{self.head_dim}-{name}"
        )


@dataclass
class Call:
    """The tensors of a call, named as in docs/plugin.md; `past` are the caches before it."""

    case: Case
    qkv: torch.Tensor
    rope_cos: torch.Tensor
    rope_sin: torch.Tensor
    write_indices: torch.Tensor
    query_scale: torch.Tensor
    past: dict[str, torch.Tensor]
    padded: dict[int, int] = field(default_factory=dict)  # row -> tokens that are no padding

    def real(self, row: int) -> int:
        """How many of a row's tokens are no padding."""
        return self.padded.get(row, self.case.tokens)


def random_call(case: Case, device: str = "cpu", *, seed: int = 0, padded: dict[int, int] | None = None) -> Call:
    """Normal values; NaN wherever the op must not look: unused cache positions, and their scales."""
    generator = torch.Generator().manual_seed(seed)
    batch, tokens, dim, capacity = len(case.lengths), case.tokens, case.head_dim, case.capacity

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    positions = torch.tensor(case.lengths)[:, None] + torch.arange(tokens)
    angles = positions[..., None] / 10000 ** (torch.arange(dim // 2) / (dim // 2))
    unused = torch.arange(capacity) >= torch.tensor(case.lengths)[:, None]
    past = {name: normal(batch, case.kv_heads, capacity, dim).to(case.dtype) for name in SIDES}
    if case.int8:
        for name in SIDES:
            past[f"{name}_scale"] = past[name].float().abs().amax(-1) / 127
            past[name] = (past[name].float() / past[f"{name}_scale"][..., None]).round().to(torch.int8)
            past[name].masked_fill_(unused[:, None, :, None], 127)
            past[f"{name}_scale"].masked_fill_(unused[:, None], torch.nan)
    else:
        for name in SIDES:
            past[name].masked_fill_(unused[:, None, :, None], torch.nan)
    qkv = normal(batch, tokens, (case.heads + 2 * case.kv_heads) * dim)
    for row, real in (padded or {}).items():
        qkv[row, real:] = 1000.0
    call = Call(
        case,
        qkv=qkv.to(case.dtype),
        rope_cos=angles.cos(),
        rope_sin=angles.sin(),
        write_indices=torch.tensor(case.lengths),
        query_scale=1 + torch.rand((batch, tokens), generator=generator),
        past=past,
        padded=padded or {},
    )
    moved = {name: value.to(device) for name, value in vars(call).items() if isinstance(value, torch.Tensor)}
    return replace(call, **moved, past={name: value.to(device) for name, value in past.items()})


def rotate(x: torch.Tensor, call: Call) -> torch.Tensor:
    """x [B, T, heads, D] in float32 for the call's positions, in the rotate_half form."""
    cos, sin = (rows[:, :, None] for rows in (call.rope_cos, call.rope_sin))
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def defined(call: Call) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """out [B, T, NH D] in float64, and the caches after the call, by docs/plugin.md word for word."""
    case = call.case
    heads, dim, dtype = case.heads, case.head_dim, case.dtype
    q, k, v = call.qkv.unflatten(2, (-1, dim)).split((heads, case.kv_heads, case.kv_heads), dim=2)
    q = (rotate(q, call) * call.query_scale[..., None, None]).to(dtype).double()
    caches = {name: value.clone() for name, value in call.past.items()}
    out = torch.zeros(*q.shape, dtype=torch.float64, device=q.device)
    for row, write in enumerate(call.write_indices.tolist()):
        count = min(case.tokens, case.capacity - write)
        for name, new in (("key", rotate(k, call)), ("value", v.float())):
            store(caches, name, row, slice(write, write + count), new[row, :count].transpose(0, 1), case)
        key, value = (widened(caches, name, row, case).repeat_interleave(heads // case.kv_heads, 0) for name in SIDES)
        for t in range(case.tokens):
            seen = min(write + t + 1, case.capacity)
            scores = torch.einsum("hd,hcd->hc", q[row, t], key[:, :seen]) / dim**0.5
            out[row, t] = torch.einsum("hc,hcd->hd", scores.softmax(-1), value[:, :seen])
    return out.flatten(2), caches


def store(caches: dict[str, torch.Tensor], name: str, row: int, places: slice, new: torch.Tensor, case: Case) -> None:
    """Write float32 vectors [KVH, T, D] of a row, as the cache keeps them."""
    if not case.int8:
        caches[name][row, :, places] = new.to(case.dtype)
        return
    largest = new.abs().amax(-1)
    scale = largest / torch.full_like(largest, 127)  # by a plain number, a GPU multiplies with the rounded inverse
    caches[f"{name}_scale"][row, :, places] = scale
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    caches[name][row, :, places] = (new / divisor[..., None]).round().to(torch.int8)


def widened(caches: dict[str, torch.Tensor], name: str, row: int, case: Case) -> torch.Tensor:
    """A row's cache [KVH, C, D] in float64."""
    values = caches[name][row].double()
    return values * caches[f"{name}_scale"][row].double()[..., None] if case.int8 else values


class Arguments(ctypes.Structure):
    """kernels/arguments.hpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("batch", "tokens", "heads", "kv_heads", "head_dim", "capacity")),
        ("float_type", ctypes.c_int32),
        ("int8_cache", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("qkv", "rope_cos", "rope_sin", "write_indices")),
        *((name, ctypes.c_void_p) for name in ("query_scale", "key", "value", "key_scale", "value_scale")),
        *((name, ctypes.c_void_p) for name in ("out", "workspace", "counters")),
    ]


class Library:
    """A shared library with the op's C interface."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        self.attend = self.library.qwenvl_kv_cache_attention
        self.attend.argtypes = [ctypes.POINTER(Arguments), ctypes.c_void_p]
        self.workspace = self.library.qwenvl_kv_cache_attention_workspace
        self.workspace.restype = ctypes.c_size_t
        self.counters = self.library.qwenvl_kv_cache_attention_counters()
        size = self.library.qwenvl_kv_cache_attention_arguments_size
        size.restype = ctypes.c_size_t
        assert size() == ctypes.sizeof(Arguments)

    def __call__(
        self, call: Call, function: Any = None, stream: int = 0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run `function` (the kernels) on copies of the caches -> out, caches after the call."""
        caches = {name: value.clone() for name, value in call.past.items()}
        arguments, kept = self.arguments(call, caches)
        status = (function or self.attend)(ctypes.byref(arguments), stream)
        assert not status, f"error {status}"
        if call.qkv.is_cuda:
            torch.cuda.synchronize()
        assert not kept[2].any(), "the kernels left their counters at other values than zero"
        return kept[0], caches

    def arguments(self, call: Call, caches: dict[str, torch.Tensor]) -> tuple[Arguments, list[torch.Tensor]]:
        """The filled struct, and [out, workspace, counters], which must be kept alive."""
        case, device = call.case, call.qkv.device
        batch = len(case.lengths)
        out = torch.full((batch, case.tokens, case.heads * case.head_dim), torch.nan, dtype=case.dtype, device=device)
        workspace = torch.full((self.workspace(case.head_dim) // 4,), torch.nan, device=device)
        counters = torch.zeros(self.counters, dtype=torch.int32, device=device)
        inputs = ("qkv", "rope_cos", "rope_sin", "write_indices", "query_scale")
        pointers = {name: getattr(call, name).data_ptr() for name in inputs}
        pointers |= {name: value.data_ptr() for name, value in caches.items()}
        arguments = Arguments(
            batch,
            case.tokens,
            case.heads,
            case.kv_heads,
            case.head_dim,
            case.capacity,
            FLOATS.index(case.dtype),
            int(case.int8),
            out=out.data_ptr(),
            workspace=workspace.data_ptr(),
            counters=counters.data_ptr(),
            **pointers,
        )
        return arguments, [out, workspace, counters]


def check(call: Call, out: torch.Tensor, caches: dict[str, torch.Tensor]) -> None:
    """Every real token's result within the float type's rounding; the caches bit by bit, where nothing was too."""
    expected, expected_caches = defined(call)
    for row in range(len(call.case.lengths)):
        real = call.real(row)
        error = (out[row, :real].double() - expected[row, :real]).abs().max().item()
        limit = TOLERANCE[call.case.dtype] * expected[row, :real].abs().max().item()
        assert error <= limit, f"{call.case}: row {row} is off by {error}, more than {limit}"
    for name, cache in caches.items():
        torch.testing.assert_close(
            cache, expected_caches[name], rtol=0, atol=0, equal_nan=True, msg=f"{call.case}: {name}"
        )
