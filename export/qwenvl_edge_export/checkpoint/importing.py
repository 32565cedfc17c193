"""A quantized checkpoint's integers in a bundle: which weights keep them, and what is said of the others."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_edge_export.checkpoint.quantized_layers import QuantizedLayer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.graphs.roles import Weight
from qwenvl_edge_export.graphs.stored import TORCH_DTYPES
from qwenvl_edge_export.options import FLOATS, ExportPrecision
from qwenvl_edge_export.weight_formats import BLOCK_SIZES, Blocks, Integers, join_rows


@dataclass(frozen=True)
class Import:
    """The decoder's weights that a checkpoint has quantized, in a bundle of `precision`.

    precision: with the blocks that hold the most of them exactly. obstacles: for every such weight what hinders that,
    empty where nothing does.
    """

    checkpoint: Checkpoint
    precision: ExportPrecision
    obstacles: dict[str, str]

    def integers(self, weight: Weight) -> Integers | None:
        """The integers and scales of `weight` as the checkpoint has them; None if they are to be made anew."""
        if self.obstacles.get(weight.name, "floats"):
            return None
        blocks = _blocks(self.precision, self.checkpoint, weight)
        assert blocks is not None  # else there was an obstacle
        return join_rows([layer.integers(blocks) for layer in self.checkpoint.quantized(weight)])

    @property
    def whole(self) -> bool:
        """True if the checkpoint is quantized and every such weight is taken over as it is."""
        return bool(self.obstacles) and not any(self.obstacles.values())

    @property
    def method(self) -> str:
        """The origin of the decoder's integers, for a manifest: imported, rounded to nearest, or both."""
        if not self.obstacles or all(self.obstacles.values()):
            return "rtn"
        return "imported" if self.whole else "imported, rtn"

    def notes(self, *, calibrated: bool) -> Sequence[str]:
        """Sentences for the user; calibrated: integers are made by calibration, none is taken over."""
        if not self.obstacles:
            return ()
        form, weights = self.checkpoint.quantized_form, self.precision.decoder.weights
        if self.whole and not calibrated:
            return (f"the checkpoint is quantized ({form}); its integers and scales are taken over as they are.",)
        lost = [obstacle for obstacle in self.obstacles.values() if obstacle]
        if calibrated or weights in FLOATS:
            return (f"the checkpoint is quantized ({form}); the floats that it stands for are computed.",)
        reasons = ", ".join(reason for reason, _ in Counter(lost).most_common(3))
        count = f"{len(lost)} of its {len(self.obstacles)} quantized matrices"
        better = self._better
        return (
            f"the checkpoint is quantized ({form}), but {weights} cannot hold {reasons}: {count} are computed as "
            f"floats and quantized anew{f'; --precision {better} holds all of them as they are' if better else ''}.",
        )

    @property
    def _better(self) -> str:
        """A precision that would hold everything as it is."""
        if self.precision.decoder.weights != "int4":
            return ""
        decoder = dataclasses.replace(self.precision.decoder, weights="int8")
        wider = dataclasses.replace(self.precision, decoder=decoder, fixed_block=False)
        return "int8" if plan_import(self.checkpoint, wider).whole else ""


def plan_import(checkpoint: Checkpoint, precision: ExportPrecision) -> Import:
    """Choose the blocks for the decoder of a quantized checkpoint: of those allowed, the ones that keep most weights.

    Raises:
        CheckpointError: a layer is broken.
    """
    sizes = [precision.decoder.block]
    if not precision.fixed_block and precision.decoder.has_blocks:
        weights = checkpoint.family.decoder.linear_weights()
        widths = {weight.shape[1] for weight in weights if _blocks(precision, checkpoint, weight)}
        sizes = [size for size in reversed(BLOCK_SIZES) if not any(width % size for width in widths)] or sizes
    tried = [_with_blocks(checkpoint, precision.of_groups(size)) for size in sizes]
    return max(tried, key=lambda each: sum(not obstacle for obstacle in each.obstacles.values()))


def _with_blocks(checkpoint: Checkpoint, precision: ExportPrecision) -> Import:
    obstacles = {}
    for weight in checkpoint.family.decoder.linear_weights():
        if layers := checkpoint.quantized(weight):
            obstacles[weight.name] = _obstacle(precision, checkpoint, weight, layers)
    return Import(checkpoint, precision, obstacles)


def _obstacle(
    precision: ExportPrecision, checkpoint: Checkpoint, weight: Weight, layers: Sequence[QuantizedLayer]
) -> str:
    blocks = _blocks(precision, checkpoint, weight)
    if blocks is None:
        return "integers in groups"
    dtype = TORCH_DTYPES[precision.decoder.dtype]
    return next(filter(None, (layer.obstacle(blocks, dtype) for layer in layers)), "")


def _blocks(precision: ExportPrecision, checkpoint: Checkpoint, weight: Weight) -> Blocks | None:
    form = precision.decoder.format(weight.name, head=weight.name == checkpoint.family.decoder.head.weight.name)
    return form if isinstance(form, Blocks) else None
