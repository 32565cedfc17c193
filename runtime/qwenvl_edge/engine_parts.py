"""The parts of an engine, opened for a bundle and put together in the order in which one needs the other."""

from __future__ import annotations

from dataclasses import dataclass

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.backends.select import BackendOptions, EngineOptions, Selection, own_backend, select_backend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.decoding.pipeline import Answerer, FeatureCache
from qwenvl_edge.decoding.sequence_decoder import SequenceDecoder
from qwenvl_edge.errors import ContextError
from qwenvl_edge.families import open_family
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import PixelLimits
from qwenvl_edge.inputs.pictures import PictureLoader
from qwenvl_edge.inputs.request import RequestBuilder
from qwenvl_edge.inputs.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class EngineParts:
    """Parts that a QwenVLEngine hands its calls to. max_context: tokens of a KV cache, prompt and answer."""

    family: Family
    selection: Selection
    max_context: int
    tokenizer: Tokenizer
    pictures: PictureLoader
    requests: RequestBuilder
    answerer: Answerer


def open_parts(bundle: Bundle, options: EngineOptions) -> EngineParts:
    """Open what answers questions on a bundle. Raises the errors of QwenVLEngine."""
    manifest = bundle.manifest
    _check_capacity(options.max_context, manifest.model.max_position_embeddings)
    family = open_family(manifest)
    limits = PixelLimits(options.min_pixels, options.max_pixels)
    family.largest_layout(limits)  # refuses limits that leave no token
    selection = _open_backend(bundle, options, limits)
    backend = selection.backend
    most = backend.limits.max_context or manifest.model.max_position_embeddings
    max_context = _check_capacity(options.max_context, most, backend.description)
    tokenizer = open_tokenizer(family, bundle.file(manifest.tokenizer), manifest.model.vocab_size)
    pictures = PictureLoader(options.channel_order, backend.load_frame)
    requests = RequestBuilder(
        family,
        tokenizer,
        pictures.load,
        defaults=manifest.generation,
        max_context=max_context,
        limits=limits,
        numbered=options.number_pictures,
    )
    answerer = _open_answerer(bundle, backend, options, family, tokenizer, max_context)
    return EngineParts(family, selection, max_context, tokenizer, pictures, requests, answerer)


def _open_backend(bundle: Bundle, options: EngineOptions, limits: PixelLimits) -> Selection:
    if isinstance(options.backend, Backend):
        return own_backend(options.backend, bundle)
    wanted = BackendOptions(
        bundle, options.threads, options.max_context, options.prefill_chunk, options.cache_memory_mb, limits
    )
    return select_backend(wanted, options.backend, options.device)


def _open_answerer(
    bundle: Bundle,
    backend: Backend,
    options: EngineOptions,
    family: Family,
    tokenizer: Tokenizer,
    max_context: int,
) -> Answerer:
    decoder = SequenceDecoder(
        backend,
        bundle.embedding,
        capacity=max_context,
        decodable=family.decodable,
        chunk=min(options.prefill_chunk, max_context),
        memory_bytes=options.cache_memory_mb << 20,
    )
    return Answerer(
        family,
        tokenizer,
        FeatureCache(backend, family),
        decoder,
        stop=family.stop_sequences(bundle.manifest.generation.chat_format, tokenizer.encode),
        files=bundle.unhashed + backend.unhashed,
    )


def _check_capacity(wanted: int | None, maximum: int, whose: str = "the model") -> int:
    if wanted is None:
        return maximum
    if not 1 <= wanted <= maximum:
        raise ContextError(f"max_context is {wanted:,}; {whose} takes 1 to {maximum:,} tokens.")
    return wanted
