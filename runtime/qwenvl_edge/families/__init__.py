"""Model families: everything that one model generation decides, and the rest asks for."""

from qwenvl_edge.bundle.manifest import FamilyInfo, Manifest, ModelInfo
from qwenvl_edge.errors import BundleError
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.qwen2_5_vl import Qwen25VLFamily
from qwenvl_edge.families.qwen2_vl import Qwen2VLFamily
from qwenvl_edge.families.qwen3_vl import Qwen3VLFamily
from qwenvl_edge.families.qwen_vl import QwenVLFamily

_FAMILIES = {family.name: family for family in (QwenVLFamily, Qwen2VLFamily, Qwen25VLFamily, Qwen3VLFamily)}


def open_family(manifest: Manifest) -> Family:
    """Return the family of a bundle. Raises BundleError as `create_family`."""
    return create_family(manifest.family, manifest.model)


def create_family(info: FamilyInfo, model: ModelInfo) -> Family:
    """Return the family that `info` names, with its configuration, for a model of some dimensions.

    Raises:
        BundleError: the family is unknown, or its configuration is none of that family's.
    """
    if info.name not in _FAMILIES:
        raise BundleError(
            f"the bundle is of the model family {info.name!r}; this version runs {', '.join(map(repr, _FAMILIES))}."
        )
    return _FAMILIES[info.name].from_config(info.config, model.head_dim)
