"""QwenVLEngine: questions about pictures in, grounded answers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.backends.kept import MEMORY_MB
from qwenvl_edge.backends.select import EngineOptions
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.decoding.batcher import Batcher
from qwenvl_edge.decoding.scheduler import answer_all
from qwenvl_edge.engine_parts import open_parts
from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.inputs.clips import Videos
from qwenvl_edge.inputs.options import anything, check, list_of, pixel_limits, text, whole
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture
from qwenvl_edge.inputs.prompt import Message, check_text
from qwenvl_edge.inputs.request import Request
from qwenvl_edge.machine.forks import keep
from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.replies.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qwenvl_edge.inputs.options import Overrides


class QwenVLEngine:
    """Answers on one bundle; safe to share between threads, which take turns in the order of their calls.

    Args:
        bundle: the folder that `qwenvl export` wrote, or an opened Bundle.
        threads: CPU threads for the graphs; None leaves the choice to the backend.
        max_context: capacity of the KV cache in tokens, prompt and answer; None takes the model's maximum, or the
            plan's.
        backend: "tensorrt" (a plan that `qwenvl build` made), "onnxruntime", or an opened Backend; "auto" takes the
            first that can run here: a plan, ONNX Runtime on a GPU, ONNX Runtime on the CPU. `describe` says which.
        device: "cuda" or "cpu" to allow only that; "auto" allows both.
        channel_order: that of picture arrays: "rgb", "bgr", or "nv12" for the arrays [3H/2, W] of Jetson cameras.
        prefill_chunk: tokens of a prompt that are computed at once; bounds what a cancellation waits for.
        cache_memory_mb: memory for KV caches of recent conversations, whose computed prefixes are continued; at least
            the current one is kept.
        min_pixels: least pixels of a picture after resizing, in families whose pictures keep their shape; None takes
            the bundle's. Calls and single pictures may ask for others.
        max_pixels: the most pixels, likewise.
        number_pictures: write "Picture 1: " before pictures in families that do not unless asked, over the whole
            conversation; it helps with several pictures.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
        BackendError: the backend is unknown or cannot run the bundle, or the bundle does not fit into memory.
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
        device: str = "auto",
        channel_order: ChannelOrder = "rgb",
        prefill_chunk: int = 128,
        cache_memory_mb: int = MEMORY_MB,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        number_pictures: bool = False,
    ) -> None:
        self._options = EngineOptions(
            threads,
            max_context,
            backend,
            device,
            channel_order,
            prefill_chunk,
            cache_memory_mb,
            min_pixels,
            max_pixels,
            number_pictures,
        )
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        parts = open_parts(self.bundle, self._options)
        self.max_context = parts.max_context
        self._family = parts.family
        self._selection = parts.selection
        self._tokenizer = parts.tokenizer
        self._pictures = parts.pictures
        self._requests = parts.requests
        self._answerer = parts.answerer
        keep(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the bundle's folder and the options: an engine is opened again where it is unpickled."""
        self._answerer.check()
        if isinstance(self._options.backend, Backend):
            raise QwenVLError("an engine on a backend of the caller's cannot be copied or pickled; open one there.")
        return _reopen, (self.bundle.path.absolute(), vars(self._options))

    def __repr__(self) -> str:
        """The bundle's folder and what runs it."""
        return f"<QwenVLEngine {str(self.bundle.path)!r} on {self._selection.backend.describe()}>"

    def check_files(self) -> None:
        """Wait until every file of the bundle has been hashed; large ones are, in the background, since it was opened.

        Raises:
            BundleError: one differs. Every call raises this error once it is known.
        """
        self._answerer.check_files()

    def describe(self) -> str:
        """Return the backend and its device, and why no faster one runs the bundle."""
        return self._selection.describe()

    def load_picture(
        self,
        source: Any,
        *,
        channel_order: ChannelOrder | None = None,
        name: str = "picture",
        as_published: bool = False,
    ) -> Picture:
        """Load a picture as the engine's calls do: a frame in the memory of the GPU that runs the engine stays there.

        Its pixels are copied, on the GPU, so the caller may use its buffer again; an NV12 frame goes through the host.
        channel_order: None takes the engine's. Arguments and errors are those of qwenvl_edge.load_picture.
        """
        return self._pictures.load_new(source, name, channel_order, as_published=as_published)

    @property
    def can_chat(self) -> bool:
        """True if the bundle holds a chat model (chat, stream); every bundle can complete()."""
        return self._requests.can_chat

    def chat(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        video: Videos = None,
        history: Iterable[Any] | None = (),
        system: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> Reply:
        """Answer a message of a conversation.

        Args:
            message: words, or items as `inputs.prompt.parse_message` describes; words are never control markup.
            images: pictures (array, Pillow image, bytes or path) put before the words, in the order given.
            video: a Video, or several, put after the pictures, in families that take clips.
            history: an earlier reply's history, or (message, answer) pairs; None is a new conversation. Whole turns,
                oldest first, are left out of the prompt beyond the bundle's window or where they would leave no room
                for the answer.
            system: the system text; None takes the model's own.
            overrides: the fields of GenerationOptions, which end the answer (max_new_tokens, stop, deadline_ms,
                cancel), and of SamplingParams (do_sample, temperature, top_p, seed, ...); min_pixels and max_pixels.

        Raises:
            PromptError: the message is empty or malformed, or the bundle holds a base model.
            ImageError: a picture cannot be read.
            ContextError: the prompt does not fit; says by how many tokens.
            BackendError: the computation failed.
        """
        return self._answer(self._requests.chat(message, images, history, system, overrides, video))

    def stream(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        video: Videos = None,
        history: Iterable[Any] | None = (),
        system: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> Stream:
        """Like chat, but return a Stream: iterate it for the text as it comes, then take its `reply`."""
        return self._stream(self._requests.chat(message, images, history, system, overrides, video))

    def count_tokens(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        video: Videos = None,
        history: Iterable[Any] | None = (),
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> int:
        """Return the tokens of the prompt that `chat` would build, without those of an answer; nothing is computed.

        Pictures count with the rows that they take, and turns of the history that chat leaves out do not count. A
        prompt too long for the context is counted too. Arguments and errors are those of chat.
        """
        self._answerer.check()
        limits = pixel_limits(min_pixels, max_pixels)
        return self._requests.count(message, images, history, system, video, limits)

    def complete(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        video: Videos = None,
        **overrides: Unpack[Overrides],
    ) -> Reply:
        """Continue a prompt without a chat template (base models).

        The text may hold grounding markup, which the answer continues: "<ref>the red mug</ref><box>" yields boxes.
        Arguments and errors are those of chat; the reply's history is empty.
        """
        return self._answer(self._requests.complete(message, images, overrides, video))

    def chat_many(
        self, messages: Iterable[Message | Mapping[str, Any]], *, max_batch: int = 8, **overrides: Unpack[Overrides]
    ) -> list[Reply]:
        """Answer several messages together, each as if alone.

        Prompts are computed one after another (what they share only once), up to `max_batch` answers are decoded
        together, and where one ends the next begins; look-up decoding is not used. The batch's KV cache is reserved
        beside the kept ones.

        Args:
            messages: each is a message, or the arguments of one call of chat: {"message": ..., "images": [...],
                "video": ..., "history": ..., "system": ..., and overrides of its own}.
            max_batch: the most answers that are decoded together.
            overrides: as in chat, for all of them.

        Returns:
            Replies in the order of the messages.

        Raises:
            QwenVLError: what chat raises; nothing is computed unless every message can be answered. An error while
                computing one answer ends the call.
        """
        requests = []
        given = check("messages", messages, list_of("a message", anything(), "a list of messages"), PromptError)
        for number, message in enumerate(given):
            arguments: dict[str, Any] = dict(message) if isinstance(message, Mapping) else {"message": message}
            if "message" not in arguments:
                raise PromptError(f'item {number} has no "message"; give what chat takes.')
            words, images = arguments.pop("message"), arguments.pop("images", ())
            history, system = arguments.pop("history", ()), arguments.pop("system", None)
            video, own = arguments.pop("video", None), cast("Overrides", {**overrides, **arguments})
            request = self._requests.chat(words, images, history, system, own, video)
            requests.append((request, request.control()))
        return answer_all(self._answerer, requests, rows=self._rows("max_batch", max_batch))

    def batcher(self, *, rows: int = 16) -> Batcher:
        """Return a Batcher on this engine: for many callers, whose answers are decoded together as they come and go.

        While it is at work, the engine's other calls wait. `close` it, or use it in a `with` block.

        Args:
            rows: the most answers at once; memory for their KV caches, of `max_context` tokens each, is reserved.
        """
        return Batcher(self._requests, self._answerer, rows=self._rows("rows", rows))

    def ground(self, image: Any, phrase: str, **overrides: Unpack[Overrides]) -> Reply:
        """Find what `phrase` names ("the red mug") in a picture: `reply.boxes`.

        Greedy unless overridden. Qwen-VL always writes a box: where the thing may be missing, ask with chat().
        Overrides and errors are those of chat.
        """
        items = [{"image": image}, *self._family.grounding_items(_check_phrase(phrase))]
        ask = self.chat if self._family.grounds_in_chat else self.complete
        overrides.setdefault("do_sample", False)
        return ask(items, **overrides)

    def point(self, image: Any, phrase: str, **overrides: Unpack[Overrides]) -> Reply:
        """Point to what `phrase` names in a picture: `reply.points`, in families that write points.

        Greedy unless overridden. Overrides and errors are those of chat.
        """
        words = self._family.pointing_prompt(_check_phrase(phrase))
        return self._describe(image, words, overrides)

    def read(self, image: Any, *, language: str = "en", **overrides: Unpack[Overrides]) -> Reply:
        """Read the text in a picture: `reply.text`, and where each piece stands: `reply.refs`, `.quads`, `.boxes`.

        Greedy unless overridden. language: "en" or "zh", that of the request. Errors are those of chat.
        """
        words = self._family.reading_prompt(check("language", language, text(), PromptError))
        return self._describe(image, words, overrides)

    def caption(self, image: Any, *, language: str = "en", **overrides: Unpack[Overrides]) -> Reply:
        """Describe a picture in a language, "en" or "zh": `reply.text`. Greedy unless overridden; errors as chat."""
        words = self._family.caption_prompt(check("language", language, text(), PromptError), chat=self.can_chat)
        return self._describe(image, words, overrides)

    def _describe(self, image: Any, words: str, overrides: Overrides) -> Reply:
        ask = self.chat if self.can_chat else self.complete
        overrides.setdefault("do_sample", False)
        return ask([{"image": image}, {"text": words}], **overrides)

    def forget(self) -> None:
        """Drop everything kept from earlier answers: computed prefixes and pictures' features."""
        self._answerer.forget()

    def _answer(self, request: Request) -> Reply:
        return self._answerer.answer(request, request.control())

    def _stream(self, request: Request) -> Stream:
        return Stream(lambda cancelled: self._answerer.stream(request, request.control(cancelled)))

    def _rows(self, name: str, wanted: int) -> int:
        """Rows of a batch, as many as the backend takes."""
        wanted = check(name, wanted, whole("a whole number of at least 1", least=1))
        return min(wanted, self._selection.backend.limits.max_batch or wanted)


def _reopen(path: Path, options: dict[str, Any]) -> QwenVLEngine:
    return QwenVLEngine(path, **options)


def _check_phrase(phrase: str) -> str:
    if not check_text(phrase, "the phrase").strip():
        raise PromptError(f"the phrase is {phrase!r}; give the words for what to find.")
    return phrase
