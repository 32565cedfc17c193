"""The parts of the protocol that the model of a bundle has: tools, reasoning, clips, pictures of any size."""

from __future__ import annotations

from dataclasses import dataclass

from qwenvl_edge.families.base import Family


@dataclass(frozen=True)
class Abilities:
    """tools: it calls functions. reasons: it reasons before it answers. clips: it takes them. sizes: pictures keep
    their shape, so that their pixels can be limited.
    """

    tools: bool = False
    reasons: bool = False
    clips: bool = False
    sizes: bool = False

    @classmethod
    def of(cls, family: Family) -> Abilities:
        """Return those of a family."""
        return cls(
            family.has_tools, family.thinking_end is not None, family.has_clips, family.preprocessing.image_size == 0
        )
