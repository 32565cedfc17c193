"""Changes of Qwen-VL's fine-tunes beside the weights: tokens of their own, a chat format that they forget to set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import BundleError, CheckpointError
from qwenvl_edge_export.checkpoint.added_tokens import read_added_tokens
from qwenvl_edge_export.checkpoint.listing import counted, few
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.metadata import Added, family_of

_PADDING_ROWS = 128
"""Vocabularies are padded to multiples of at most so many rows; more unused ones are somebody's tokens."""


def added_tokens(folder: Path, config: QwenVLConfig) -> Added:
    """Texts and ids of the tokens that the checkpoint in `folder` has beside the published ones.

    Raises:
        CheckpointError: the files about them are malformed, or an id cannot be such a token's.
    """
    try:
        published = family_of(config).special_tokens
    except BundleError as error:
        raise CheckpointError(f'the checkpoint "{folder}" cannot be exported: {error}') from None
    found = [token for token in read_added_tokens(folder) if published.get(token.text) != token.id]
    if beyond := [token for token in found if token.id >= config.vocab_size]:
        raise CheckpointError(
            f'the checkpoint "{folder}" adds {counted(len(beyond), "token")} ({few([t.text for t in beyond])}) with '
            f"ids from {beyond[0].id} on, but its model has {config.vocab_size} rows; resize its embeddings."
        )
    added = tuple((token.text, token.id) for token in found)
    try:
        family_of(config, added)
    except BundleError as error:
        raise CheckpointError(f'the checkpoint "{folder}" cannot be exported: {error}') from None
    return added


def token_notes(config: QwenVLConfig, added: Added) -> Iterator[str]:
    """Sentences about added tokens, and about rows that look like such but have no text."""
    if added:
        yield (
            f"the checkpoint adds {counted(len(added), 'token')} ({few([text for text, _ in added])}): the model "
            "writes and reads them, raw prompts may hold them; in a user's words in a chat they stay text."
        )
    unused = config.vocab_size - family_of(config, added).decodable
    if unused >= _PADDING_ROWS:
        yield (
            f"the model has {unused:,} vocabulary rows without a token, which are never sampled; if a fine-tune added "
            "tokens, list them in added_tokens.json beside the weights and export again."
        )


def chat_notes(generation: Mapping[str, Any]) -> Iterator[str]:
    """A sentence about a chat format that does not chat."""
    if generation.get("chat_format") == "raw":
        yield (
            'generation_config.json says chat_format "raw", a base model: its bundle continues text and does not chat; '
            "if it was fine-tuned on conversations, export it with --chat-format chatml."
        )
