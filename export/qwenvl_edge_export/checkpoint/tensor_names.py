"""Names of tensors in files -> the names that a family knows.

Wrappers put prefixes in front (PEFT, DeepSpeed, torch.compile), libraries renamed modules between versions (the
family's `rename`), and old code saved buffers that are computed anyway. What cannot be told apart is refused in a line.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.listing import counted, few, shortened
from qwenvl_edge_export.families.base import ExportFamily

QUANTIZED_PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""The last parts of the names that one quantized linear layer's tensors have, beside `bias`."""

# Rotary caches, masks, position ids, counters of profilers: computed, or of no use here. A family may ignore more.
_BUFFERS = (
    *("*.inv_freq", "*.cos_cached", "*.sin_cached", "*.cos_cache", "*.sin_cache", "*.rotary_emb.*"),
    *("*.masked_bias", "*.attn.bias", "*.attention.bias", "*.causal_mask", "*.registered_causal_mask", "*.attn_mask"),
    *("*position_ids", "*.total_ops", "*.total_params", "*._extra_state", "*.num_batches_tracked"),
)
# In the middle of a name, where torch.compile, FSDP or activation checkpointing wrapped a module.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_ADAPTER = re.compile(
    r"(^|\.)(lora_\w+|base_layer|modules_to_save|original_module|ia3_\w+|vera_\w+|oft_\w+|hada_\w+|lokr_\w+"
    r"|prompt_encoder|prompt_embeddings)(\.|$)"
)
_DEEPEST_PREFIX = 6
MERGE = "merge it with PEFT (merge_and_unload, then save_pretrained) and export the result"


def canonical_names(place: str, names: Collection[str], family: ExportFamily) -> dict[str, str]:
    """The names in files by the names that the family has for them; ones that it does not know keep their own.

    Args:
        place: the checkpoint, for messages.
        names: those in the files; buffers that carry nothing are left out.
        family: says how names may be spelt.

    Raises:
        CheckpointError: an adapter is not merged, or a tensor is there more than once, under different prefixes.
    """
    found: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    unknown = []
    for name in names:
        known, prefix = _known_name(name, family)
        if known is None:
            unknown.append(name)
        elif known in found:
            raise CheckpointError(
                f'the checkpoint "{place}" holds {known} twice, {_under(prefixes[known])} and {_under(prefix)}; '
                "save one of the models alone."
            )
        else:
            found[known], prefixes[known] = name, prefix
    if adapters := [name for name in unknown if _ADAPTER.search(name)]:
        raise CheckpointError(
            f'the checkpoint "{place}" holds an adapter (LoRA or the like) that is not merged: '
            f"{counted(len(adapters), 'tensor')} such as {few(adapters, 1)}; {MERGE}."
        )
    return found | {name: name for name in unknown if not _carries_nothing(name, family)}


def is_layer_part(name: str, known: Collection[str]) -> bool:
    """Tell if `name` is a part of a quantized form of one of the `known` weights, or the bias beside it."""
    layer, _, part = name.rpartition(".")
    return part in (*QUANTIZED_PARTS, "bias") and f"{layer}.weight" in known


def _known_name(name: str, family: ExportFamily) -> tuple[str | None, str]:
    """The family's name, and the prefix that stood before it; the shortest prefix that makes sense wins."""
    plain = name
    for wrapper in _WRAPPERS:
        plain = plain.replace(wrapper, "")
    rest, prefix = plain, ""
    for _ in range(_DEEPEST_PREFIX):
        candidate = family.rename(rest)
        if candidate in family.tensors or candidate in family.copies or is_layer_part(candidate, family.tensors):
            return candidate, prefix
        first, _, rest = rest.partition(".")
        prefix = f"{prefix}{first}."
        if not rest:
            break
    return None, ""


def _carries_nothing(name: str, family: ExportFamily) -> bool:
    return any(fnmatchcase(f".{name}", pattern) for pattern in (*_BUFFERS, *family.ignored))


def _under(prefix: str) -> str:
    return f'under "{shortened(prefix)}"' if prefix else "without a prefix"
