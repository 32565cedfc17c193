"""A lowered graph -> TensorRT's network: parsed, made to use native attention over the cache, and checked for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.errors import BackendError

ATTENTION = "ATTENTION_INPUT"
CACHE_UPDATE = "KV_CACHE_UPDATE"
ROTARY = "ROTARY_EMBEDDING"


class Network:
    """A strongly typed network that was parsed from a lowered graph; `network` is TensorRT's own."""

    def __init__(self, library: Library, model: bytes, path: Path):
        """Parse `model`; `path` is where it would lie, its external data beside it.

        Raises:
            BackendError: TensorRT does not take the graph; names the node and repeats TensorRT's reason.
        """
        trt = library.module
        self.library = library
        self.builder = trt.Builder(library.log)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self.network, library.log)  # the weights live as long as it does
        if not self._parser.parse(model, path=str(path)):
            raise self._refused(path.name)
        self._prepare_attention()

    def native_layers(self) -> Counter[str]:
        """How many layers there are of each kind, by TensorRT's names."""
        return Counter(layer.type.name for layer in self._layers())

    def check_native(self, layers: int) -> None:
        """Check that a decoder of so many layers updates its caches in place and attends in one layer.

        Raises:
            BackendError: the parser took the graph apart instead, which would copy every cache at every token.
        """
        found = self.native_layers()
        expected = {CACHE_UPDATE: 2 * layers, ROTARY: 2 * layers, ATTENTION: layers}
        if wrong := [f"{name} {found[name]} instead of {n}" for name, n in expected.items() if found[name] != n]:
            raise BackendError(
                f"{self.library.name} does not map the decoder to its native layers ({', '.join(wrong)}); "
                "use TensorRT 10.15 or newer, or TensorRT-RTX."
            )

    def _refused(self, name: str) -> BackendError:
        errors = (self._parser.get_error(i) for i in range(self._parser.num_errors))
        text = "; ".join(dict.fromkeys(f"{e.node_operator()} {e.node_name()}: {e.desc()}".strip() for e in errors))
        self.library.log.lines.clear()
        return BackendError(f"{self.library.name} does not take {name}: {text[:600] or 'it gave no reason'}.")

    def _prepare_attention(self) -> None:
        """Let attention without a fused kernel (in float32) be built from others; take identity factors away."""
        trt = self.library.module
        if not hasattr(trt, "IAttentionInputLayer"):
            return
        producers = {layer.get_output(i).name: layer for layer in self._layers() for i in range(layer.num_outputs)}
        for layer in self._layers():
            if layer.type.name != ATTENTION:
                continue
            layer.__class__ = trt.IAttentionInputLayer  # how TensorRT's Python API narrows a layer
            attention = layer.attention
            attention.decomposable = True
            key = producers.get(layer.get_input(1).name)
            if key is not None and (cache := _updated_cache(key, producers)) is not None:
                # Lowering moved the factor to the queries; what is left of it here would rewrite every cache.
                attention.set_input(1, cache)

    def _layers(self) -> list[Any]:
        return [self.network.get_layer(i) for i in range(self.network.num_layers)]


def _updated_cache(layer: Any, producers: dict[str, Any]) -> Any:
    """The output of a cache update that `layer` multiplies; None where it does something else."""
    if layer.type.name != "ELEMENTWISE":
        return None
    tensor = layer.get_input(0)
    update = producers.get(tensor.name)
    return tensor if update is not None and update.type.name == CACHE_UPDATE else None
