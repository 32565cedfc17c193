"""What was written becomes a Reply: places put into their pictures, history continued."""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_edge.families import QwenVL
from qwenvl_edge.families.boxes import boxes_of, place, quads_of, refs_of
from qwenvl_edge.inputs.messages import Part, Text, Turn
from qwenvl_edge.inputs.request import Request
from qwenvl_edge.replies.reply import FinishReason, Reply
from qwenvl_edge.replies.stats import Stats
from qwenvl_edge.replies.text_writer import AnswerWriter


def make_reply(
    family: QwenVL, request: Request, writer: AnswerWriter, reason: FinishReason, complete: bool | None, stats: Stats
) -> Reply:
    """Build the reply to a request from its finished writer."""
    turn = Turn(request.message, writer.raw_text)
    kept = request.history[len(request.history) - request.prompt.turns :]
    pictures = next((each.pictures for each in (turn, *reversed(kept)) if each.pictures), ())
    malformed = list(writer.malformed)
    shapes = list(writer.shapes)
    if not pictures:
        malformed += [shape.source for shape in shapes]
        shapes = []
    asked = _asked_picture(family, request.message, len(pictures))
    images = [_named_picture(family, writer.text_before(shape), len(pictures), asked) for shape in shapes]
    places = place(shapes, images, [picture.size for picture in pictures])
    return Reply(
        text=writer.text,
        raw_text=writer.raw_text,
        boxes=boxes_of(places),
        quads=quads_of(places),
        refs=refs_of(writer.labels, shapes, places),
        malformed=tuple(malformed),
        pictures=pictures,
        history=(*request.history, turn) if request.is_chat else (),
        finish_reason=reason,
        stats=stats,
        complete=complete,
    )


def _asked_picture(family: QwenVL, message: Sequence[Part], count: int) -> int:
    """Return the index of the one picture that the question names, else of the last one."""
    named = set(family.named_pictures("\n".join(part.text for part in message if isinstance(part, Text))))
    number = named.pop() if len(named) == 1 else count
    return number - 1 if 1 <= number <= count else count - 1


def _named_picture(family: QwenVL, text_before: str, count: int, otherwise: int) -> int:
    """Return the index of the picture that the answer named last before a shape, or `otherwise`."""
    named = family.named_pictures(text_before)
    return named[-1] - 1 if named and 1 <= named[-1] <= count else otherwise
