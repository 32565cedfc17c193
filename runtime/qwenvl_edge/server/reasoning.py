"""The reasoning before an answer: how many tokens a request allows it, by the names that clients have for that."""

from __future__ import annotations

from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.messages import refused
from qwenvl_edge.server.schema import ChatRequest, Reasoning, TemplateOptions

_SHARES = {"none": 0.0, "minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95}
"""Of the answer's tokens that an effort may spend on reasoning, those of OpenRouter."""


def thinking_budget(request: ChatRequest, abilities: Abilities, most: int) -> int | None:
    """Return the most tokens of the reasoning; None sets no limit of its own. The least of several wishes holds.

    Args:
        most: tokens of the whole answer.

    Raises:
        ApiError: it asks for reasoning, and the model does not reason.
    """
    given = request.reasoning or Reasoning.model_validate({})
    template = request.chat_template_kwargs or TemplateOptions.model_validate({})
    efforts = {"reasoning_effort": request.reasoning_effort, "reasoning.effort": given.effort}
    counts = {
        "thinking_budget": request.thinking_budget,
        "thinking_token_budget": request.thinking_token_budget,
        "reasoning.max_tokens": given.max_tokens,
        "chat_template_kwargs.thinking_budget": template.thinking_budget,
    }
    switches = {
        "enable_thinking": request.enable_thinking,
        "reasoning.enabled": given.enabled,
        "chat_template_kwargs.enable_thinking": template.enable_thinking,
        "chat_template_kwargs.thinking": template.thinking,
    }
    wishes = {name: int(_SHARES[effort] * most) for name, effort in efforts.items() if effort is not None}
    wishes |= {name: count for name, count in counts.items() if count is not None}
    wishes |= {name: 0 for name, on in switches.items() if on is False}
    if not abilities.reasons:
        asked = [*(name for name, count in wishes.items() if count), *(name for name, on in switches.items() if on)]
        if asked:
            raise refused(asked[0], "asks for reasoning, which this model does not do apart; leave it out")
        return None
    return min(wishes.values(), default=None)
