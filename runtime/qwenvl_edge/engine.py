"""QwenVLEngine: questions about pictures in, grounded answers out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.answer import AnswerWriter
from qwenvl_edge.backends.base import Backend
from qwenvl_edge.bundle import Bundle
from qwenvl_edge.conversation import Message, Part, Text, Turn, parse_history, parse_message
from qwenvl_edge.decoder import SequenceDecoder
from qwenvl_edge.errors import BackendError, ContextError, PromptError, QwenVLError
from qwenvl_edge.families import create_family
from qwenvl_edge.features import FeatureCache
from qwenvl_edge.generation import Generation
from qwenvl_edge.grounding import place
from qwenvl_edge.image import ChannelOrder, Picture, load_picture
from qwenvl_edge.options import GenerationOptions
from qwenvl_edge.prompt import Prompt, PromptBuilder, open_markup
from qwenvl_edge.reply import FinishReason, Reply
from qwenvl_edge.stats import Stats
from qwenvl_edge.stream import Stream
from qwenvl_edge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qwenvl_edge.options import Overrides

_KEPT_FEATURES = 16  # pictures whose features are kept for follow-up questions
_ANSWER_SHARE = 4  # history may not take the last quarter of the context from an answer that wants it


@dataclass(frozen=True)
class _Request:
    """One call, checked and tokenized; `prepare_s` is what that took."""

    prompt: Prompt
    options: GenerationOptions
    history: tuple[Turn, ...]
    message: tuple[Part, ...]
    lead: str
    is_chat: bool
    prepare_s: float


class QwenVLEngine:
    """Answers on one bundle; safe to share between threads, which take turns (one answer at a time, by a lock).

    Args:
        bundle: the folder that `qwenvl export` wrote, or an opened Bundle.
        threads: CPU threads for the graphs; None leaves the choice to the backend.
        max_context: capacity of the KV cache in tokens, prompt and answer; None takes the model's maximum.
        backend: "auto" or "onnxruntime", or an opened Backend.
        channel_order: the channel order of picture arrays, "rgb" or "bgr".
        prefill_chunk: tokens of a prompt that are computed at once; bounds what a cancellation waits for.
        cache_memory_mb: memory for KV caches of recent conversations, whose computed prefixes are continued; at least
            the current one is kept.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
        BackendError: the backend is unknown or cannot run the bundle.
        ContextError: max_context is out of range.
        QwenVLError: prefill_chunk or cache_memory_mb is less than 1.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        threads: int | None = None,
        max_context: int | None = None,
        backend: Backend | str = "auto",
        channel_order: ChannelOrder = "rgb",
        prefill_chunk: int = 256,
        cache_memory_mb: int = 512,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        model = manifest.model
        self.max_context = _check_capacity(max_context, model.max_position_embeddings)
        self._family = create_family(
            manifest.family, image_start_id=model.image_start_id, image_tokens=model.image_tokens
        )
        self._tokenizer = self._open_tokenizer()
        self._prompts = PromptBuilder(self._family, self._tokenizer)
        self._stop = self._family.stop_sequences(manifest.generation.chat_format, self._tokenizer.encode)
        self._channel_order = channel_order
        opened = backend if isinstance(backend, Backend) else _open_backend(backend, self.bundle, threads)
        self._features = FeatureCache(opened, self._family.preprocessing(model.image_size), _KEPT_FEATURES)
        self._decoder = SequenceDecoder(
            opened,
            self.bundle.embedding,
            capacity=self.max_context,
            decodable=self._family.decodable,
            image_tokens=model.image_tokens,
            chunk=min(_check_positive("prefill_chunk", prefill_chunk), self.max_context),
            memory_bytes=_check_positive("cache_memory_mb", cache_memory_mb) << 20,
        )
        self._lock = threading.Lock()
        self._owner: int | None = None

    @property
    def can_chat(self) -> bool:
        """Whether the bundle holds a chat model (chat, stream); every bundle can complete()."""
        return self._family.can_chat(self.bundle.manifest.generation.chat_format)

    def chat(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        history: Iterable[Any] = (),
        system: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> Reply:
        """Answer a message of a conversation.

        Args:
            message: words, or items as `conversation.parse_message` describes; words are never control markup.
            images: pictures (array, Pillow image, bytes or path) put before the words as "Picture 1:" and so on.
            history: an earlier reply's history, or (message, answer) pairs. Whole turns, oldest first, are left out
                of the prompt beyond the bundle's window or where they would leave no room for the answer.
            system: the system text; None takes the model's own.
            overrides: max_new_tokens and the fields of SamplingParams (do_sample, temperature, top_p, seed, ...).

        Raises:
            PromptError: the message is empty or malformed, or the bundle holds a base model.
            ImageError: a picture cannot be read.
            ContextError: the prompt does not fit; says by how many tokens.
            BackendError: the computation failed.
        """
        request = self._chat_request(message, images, history, system, overrides)
        return Stream(lambda cancelled: self._answer(request, cancelled)).finish()

    def stream(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        history: Iterable[Any] = (),
        system: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> Stream:
        """Like chat, but return a Stream: iterate it for the text as it comes, then take its `reply`."""
        request = self._chat_request(message, images, history, system, overrides)
        return Stream(lambda cancelled: self._answer(request, cancelled))

    def complete(self, message: Message, *, images: Iterable[Any] = (), **overrides: Unpack[Overrides]) -> Reply:
        """Continue a prompt without a chat template (base models).

        The text may hold grounding markup, which the answer continues: "<ref>the red mug</ref><box>" yields boxes.
        Arguments and errors are those of chat; the reply's history is empty.
        """
        started = time.perf_counter()
        options = GenerationOptions.merge(self.bundle.manifest.generation, overrides)
        parts = parse_message(message, images, self._load)
        prompt = self._checked(self._prompts.raw(parts))
        lead = open_markup(parts, self._family.markup)
        request = _Request(prompt, options, (), parts, lead, False, time.perf_counter() - started)
        return Stream(lambda cancelled: self._answer(request, cancelled)).finish()

    def forget(self) -> None:
        """Drop everything kept from earlier answers: computed prefixes and pictures' features."""
        with self._exclusive():
            self._decoder.forget()
            self._features.forget()

    def _open_tokenizer(self) -> Tokenizer:
        path = self.bundle.file(self.bundle.manifest.tokenizer)
        self._family.check_vocabulary(path, self.bundle.manifest.model.vocab_size)
        return Tokenizer(path, self._family.special_tokens)

    def _load(self, source: Any, name: str) -> Picture:
        return load_picture(source, channel_order=self._channel_order, name=name)

    def _chat_request(
        self,
        message: Message,
        images: Iterable[Any],
        history: Iterable[Any],
        system: str | None,
        overrides: Overrides,
    ) -> _Request:
        started = time.perf_counter()
        defaults = self.bundle.manifest.generation
        if not self.can_chat:
            raise PromptError("the bundle holds a base model, which knows no conversations; use complete().")
        options = GenerationOptions.merge(defaults, overrides)
        parts = parse_message(message, images, self._load)
        turns = parse_history(history, self._load)
        answer = min(options.max_new_tokens, self.max_context // _ANSWER_SHARE)
        room = self.max_context - self._prompts.question_length(parts) - answer
        prompt = self._prompts.chat(
            parts,
            history=turns,
            system=self._family.default_system if system is None else system,
            window=min(defaults.max_window_size, room),
        )
        return _Request(self._checked(prompt), options, turns, parts, "", True, time.perf_counter() - started)

    def _checked(self, prompt: Prompt) -> Prompt:
        excess = len(prompt.ids) - self.max_context
        if excess > 0:
            raise ContextError(
                f"the prompt has {len(prompt.ids):,} tokens, {excess:,} more than the context of {self.max_context:,} "
                "holds; shorten it, give fewer pictures or open the engine with a larger max_context."
            )
        return prompt

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise QwenVLError("a stream of this engine is still open in this thread; read it to its end or close it.")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _answer(self, request: _Request, cancelled: threading.Event) -> Generator[str, None, Reply]:
        """Compute an answer, yielding its text as it comes."""
        with self._exclusive():
            clock = time.perf_counter()
            encoded = self._begin(request.prompt)
            image_s = time.perf_counter() - clock
            clock = time.perf_counter()
            while (logits := self._decoder.prefill()) is None:
                pass
            prefill_s = time.perf_counter() - clock
            writer = self._writer(request)
            run = Generation(self._decoder, writer, request.options, logits)
            yield run.piece
            while run.finish_reason is None and not cancelled.is_set():
                yield run.step()
            yield writer.finish()
        stats = Stats(
            image_ms=image_s * 1e3,
            prefill_ms=prefill_s * 1e3,
            ttft_ms=(request.prepare_s + image_s + prefill_s + run.first_s) * 1e3,
            token_ms=tuple(run.token_ms),
            prompt_tokens=len(request.prompt.ids),
            reused_tokens=self._decoder.reused,
            image_tokens=self._family.image_tokens * len(request.prompt.pictures),
            new_tokens=run.new_tokens,
            images_encoded=encoded,
            history_turns_dropped=len(request.history) - request.prompt.turns,
        )
        return self._reply(request, writer, run.finish_reason or "cancelled", stats)

    def _begin(self, prompt: Prompt) -> int:
        """Encode the pictures that no computed prefix covers; return how many were not found in the feature cache."""
        wanted = self._decoder.begin(prompt)
        features, encoded = self._features.encode([prompt.pictures[i] for i in wanted])
        self._decoder.load(prompt, dict(zip(wanted, features, strict=True)))
        return encoded

    def _writer(self, request: _Request) -> AnswerWriter:
        family = self._family
        return AnswerWriter(
            self._tokenizer, family.markup, stop=self._stop, hidden=family.hidden_ids, lead=request.lead
        )

    def _reply(self, request: _Request, writer: AnswerWriter, reason: FinishReason, stats: Stats) -> Reply:
        turn = Turn(request.message, writer.raw_text)
        kept = request.history[len(request.history) - request.prompt.turns :]
        pictures = next((each.pictures for each in (turn, *reversed(kept)) if each.pictures), ())
        malformed = list(writer.malformed)
        shapes = list(writer.shapes)
        if not pictures:
            malformed += [shape.source for shape in shapes]
            shapes = []
        asked = self._asked_picture(request.message, len(pictures))
        images = [self._named(writer.text_before(shape), len(pictures), asked) for shape in shapes]
        boxes, quads = place(shapes, images, [picture.size for picture in pictures])
        return Reply(
            text=writer.text,
            raw_text=writer.raw_text,
            boxes=boxes,
            quads=quads,
            malformed=tuple(malformed),
            pictures=pictures,
            history=(*request.history, turn) if request.is_chat else (),
            finish_reason=reason,
            stats=stats,
        )

    def _asked_picture(self, message: Sequence[Part], count: int) -> int:
        """Return the index of the one picture that the question names, else of the last one."""
        named = set(self._family.named_pictures("\n".join(part.text for part in message if isinstance(part, Text))))
        number = named.pop() if len(named) == 1 else count
        return number - 1 if 1 <= number <= count else count - 1

    def _named(self, text_before: str, count: int, otherwise: int) -> int:
        """Return the index of the picture that the answer named last before a shape, or `otherwise`."""
        named = self._family.named_pictures(text_before)
        return named[-1] - 1 if named and 1 <= named[-1] <= count else otherwise


def _check_capacity(wanted: int | None, maximum: int) -> int:
    if wanted is None:
        return maximum
    if not 1 <= wanted <= maximum:
        raise ContextError(f"max_context is {wanted:,}; the model takes 1 to {maximum:,} tokens.")
    return wanted


def _check_positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise QwenVLError(f"{name} is {value!r}; give a whole number of at least 1.")
    return value


def _open_backend(name: str, bundle: Bundle, threads: int | None) -> Backend:
    if name not in ("auto", "onnxruntime"):
        raise BackendError(f"the backend {name!r} is unknown; this version has 'onnxruntime'.")
    from qwenvl_edge.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads=threads)
