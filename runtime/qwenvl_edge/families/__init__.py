"""Model families: what differs between model generations, and nothing else knows."""

from qwenvl_edge.errors import BundleError
from qwenvl_edge.families.qwen_vl import QwenVL

__all__ = ["QwenVL", "create_family"]


def create_family(name: str, *, image_start_id: int, image_tokens: int) -> QwenVL:
    """Return the family that a bundle's manifest names.

    Raises:
        BundleError: the family is unknown or its special tokens cannot start where the manifest says.
    """
    if name != "qwen_vl":
        raise BundleError(f"the bundle is of the model family {name!r}; this version runs 'qwen_vl' only.")
    return QwenVL.from_image_start(image_start_id, image_tokens)
