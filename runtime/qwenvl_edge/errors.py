"""The errors a caller may catch: one class per subject, each message one sentence (what, where, what to do)."""


class QwenVLError(Exception):
    """Base of every error that this project raises on purpose."""


class BundleError(QwenVLError):
    """A bundle is missing, truncated, altered, or made for another version."""


class CheckpointError(QwenVLError):
    """A checkpoint lacks files or tensors, or holds misshapen ones."""


class ImageError(QwenVLError):
    """A picture cannot be read, or is empty, gigantic, or of an unsupported shape or dtype."""


class FrameError(QwenVLError):
    """A camera frame is stale, did not come, or cannot be put."""


class PromptError(QwenVLError):
    """A message or a conversation cannot be turned into a prompt."""


class ContextError(QwenVLError):
    """A prompt does not fit into the context.

    limit: tokens that fit. tokens: those of the prompt. Both are None where the error is about something else, and
    tokens also where the prompt is too long to be counted.
    """

    def __init__(self, message: str, *, limit: int | None = None, tokens: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.tokens = tokens


class BackendError(QwenVLError):
    """A backend cannot be created, or computed something unusable (NaN, infinity)."""
