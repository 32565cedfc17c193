"""A generation_config.json's settings, as transformers means them: what it leaves out has transformers' own default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from qwenvl_edge_export.checkpoint.listing import few
from qwenvl_edge_export.families.config_values import ConfigValues

GENERATION_FILE = "generation_config.json"
_TOP_K = 50
# Keys that change which tokens are chosen and that no bundle keeps, with the values that change nothing.
_UNUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0, 0.0),
    "typical_p": (1, 1.0),
    "min_p": (0, 0.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({},),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1, 1.0),
}


class Sampling(TypedDict):
    """The fields of a bundle's defaults that every family has."""

    do_sample: bool
    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float
    max_new_tokens: int


def sampling_defaults(raw: Mapping[str, Any], *, max_new_tokens: int) -> Sampling:
    """Read the settings of a generation_config.json's content.

    transformers leaves out what equals its defaults: greedy, and where sampled top_k 50, temperature, top_p and
    repetition_penalty 1. null switches a filter off. Its default length (20 tokens with the prompt) means that nobody
    chose one: then it is `max_new_tokens`. A max_length counts the prompt too, so it bounds the new tokens.

    Raises:
        CheckpointError: a value is of another type, or out of range.
    """
    values = ConfigValues(raw, GENERATION_FILE)
    longest = values.whole("max_length", max_new_tokens)
    return Sampling(
        do_sample=values.flag("do_sample", False),
        top_p=values.number("top_p", 1.0, most=1.0),
        top_k=values.whole("top_k", 0 if "top_k" in raw else _TOP_K, least=0),
        temperature=values.number("temperature", 1.0),
        repetition_penalty=values.number("repetition_penalty", 1.0),
        max_new_tokens=values.whole("max_new_tokens", longest),
    )


def unused_settings(raw: Mapping[str, Any]) -> Iterator[str]:
    """A sentence about settings that choose other tokens than a bundle will, if there are any."""
    found = [key for key, same in _UNUSED.items() if raw.get(key) is not None and raw[key] not in same]
    if found:
        yield f"{GENERATION_FILE} sets {few(found)}, which a bundle does not apply."
