"""What an answer cost."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Times in milliseconds and token counts of one answer.

    ttft_ms runs from the call to the first token (waiting, pictures and prefill included; 0 if there was none);
    token_ms holds the computing time of each token after it. reused_tokens of the prompt were computed for an earlier
    answer and prefill_tokens for this one: all others, unless it ended before its first token. new_tokens counts every
    token taken, a stop token included; a constraint left no choice for forced_tokens of them. Look-up decoding proposed
    proposed_tokens, accepted_tokens of them rightly.
    images_encoded are those not found in the feature cache. history_turns_dropped did not fit into the window.
    """

    image_ms: float
    prefill_ms: float
    ttft_ms: float
    token_ms: tuple[float, ...]
    prompt_tokens: int
    reused_tokens: int
    prefill_tokens: int
    image_tokens: int
    new_tokens: int
    forced_tokens: int
    proposed_tokens: int
    accepted_tokens: int
    images_encoded: int
    history_turns_dropped: int

    @property
    def decode_ms(self) -> float:
        """Computing time of all tokens after the first."""
        return math.fsum(self.token_ms)

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens a second, the first token (which the prefill yields) left out; 0 if there was only that."""
        return (self.new_tokens - 1) / self.decode_ms * 1000 if self.new_tokens > 1 and self.decode_ms > 0 else 0.0
