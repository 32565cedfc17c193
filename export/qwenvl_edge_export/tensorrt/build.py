"""`qwenvl build`: a bundle's graphs -> plans/<target>/, whole or not there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwenvl_edge.backends.tensorrt.library import installed_libraries
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import (
    DECODER_PLAN,
    FORMAT,
    PLANS_FOLDER,
    REFIT_GRAPHS,
    TENSORRT,
    TENSORRT_RTX,
    VISION_PLAN,
    Builder,
    Plan,
    PlanLimits,
    PlanManifest,
    bundle_digest,
    platform_name,
    plugin_file,
)
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.errors import BackendError, BundleError
from qwenvl_edge_export.files.atomic_folder import clean_up, staged_folder
from qwenvl_edge_export.files.path_lock import sole_writer, staying
from qwenvl_edge_export.tensorrt.lint import check_graph, check_weights
from qwenvl_edge_export.tensorrt.lowering import Lowering
from qwenvl_edge_export.tensorrt.memory import check_resources
from qwenvl_edge_export.tensorrt.network import Network
from qwenvl_edge_export.tensorrt.plugin_lowering import PluginLowering, install_plugin, needs_plugin
from qwenvl_edge_export.tensorrt.profiles import (
    Shapes,
    choose_limits,
    decoder_profiles,
    decoder_shapes,
    vision_shapes,
)
from qwenvl_edge_export.tensorrt.progress import STEPS, Progress, interruptible, monitor
from qwenvl_edge_export.tensorrt.targets import Target, check_precision, choose, local_gpu

__all__ = ["build", "choose_limits"]

STANDARD, PLUGIN = "standard", "plugin"


def build(
    bundle: Bundle,
    target: str,
    limits: PlanLimits,
    *,
    plugin: Path | None = None,
    force: bool = False,
    strip: bool = False,
    wait: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Build the plan `target` of `bundle`.

    Args:
        bundle: its graphs are parsed and its weights read where they lie.
        target: "local", "sm_86" or the like, or a name such as "orin" (targets.NAMES).
        limits: what the engines must take (profiles.choose_limits).
        plugin: the library of KVCacheAttention, which TensorRT before 10.15 and an int8 KV cache need; it is copied
            beside the engines.
        force: replace a plan of that name; the old one goes when the new one is whole.
        strip: leave the weights out of the engines; they are read from the bundle when the plan is loaded.
        wait: wait for another process that writes the same plan or replaces the bundle; without it that is an error.
        progress: called with (steps done, steps in total, what is being done).

    Returns:
        The plan, opened.

    Raises:
        BackendError: no TensorRT here builds for the target, it lacks a precision, weights are stored in a form that it
            does not multiply, memory or disk do not suffice, or TensorRT refuses a graph; its own lines are in the
            message.
        BundleError: the plan exists and `force` is not set, another process is at work on it, or it cannot be written.
    """
    chosen = choose(target, installed_libraries(), local_gpu())
    precision = bundle.manifest.precision
    check_precision(chosen, [precision.decoder, precision.lm_head, precision.vision, *precision.compute.values()])
    with_plugin = needs_plugin(chosen.library, bundle)
    place = (bundle.path / PLANS_FOLDER / chosen.name).absolute()
    _check_place(place, force)
    if strip:
        _check_strippable(bundle)
    check_weights(bundle, chosen.library)
    check_resources(bundle, chosen, bundle.path)
    work, folder = f"a build for {chosen.name}", bundle.path.absolute()
    with (
        staying(folder, work, wait=wait, progress=progress),
        sole_writer(place, work, wait=wait, progress=progress),
    ):
        if Bundle.open(bundle.path).manifest != bundle.manifest:
            raise BundleError(f'the bundle "{bundle.path}" was replaced in the meantime; build again.')
        clean_up(place)
        _check_place(place, force)
        with staged_folder(place, replace=force) as staged:
            entry = install_plugin(chosen.library, bundle, plugin, staged) if with_plugin else ""
            _PlanBuild(bundle, chosen, limits, entry, staged, strip, progress).run().write(staged)
    return Plan.open(bundle, chosen.name)


def _check_place(place: Path, force: bool) -> None:
    if place.exists() and not force:
        raise BundleError(f'"{place}" exists already; replace it with --force.')


def _check_strippable(bundle: Bundle) -> None:
    precision = bundle.manifest.precision
    if changed := {precision.vision, precision.decoder, precision.lm_head} & {"int4", "int8"}:
        raise BackendError(
            f"--strip-weights takes the weights from the bundle as they lie there, but {' and '.join(sorted(changed))} "
            "ones are unsigned there, which TensorRT does not know; build without it, or export in fp16, bf16 or w8a8."
        )


class _PlanBuild:
    """One build into `folder`, where `plugin` lies already, as plans name it ("" without one)."""

    def __init__(
        self,
        bundle: Bundle,
        target: Target,
        limits: PlanLimits,
        plugin: str,
        folder: Path,
        strip: bool,
        progress: Progress | None,
    ):
        self._strip = strip
        self.bundle = bundle
        self.target = target
        self.limits = limits
        self.folder = folder
        self._progress = progress
        self._finished = 0
        self._plugin = plugin
        self._lowering = PluginLowering if plugin else Lowering
        # Kernel timings outlast the plans, so that the next build need not measure again.
        self._timing = bundle.path / PLANS_FOLDER / f"{target.name}.timing"

    def run(self) -> PlanManifest:
        manifest, library = self.bundle.manifest, self.target.library
        files = {VISION_PLAN: self._vision(), DECODER_PLAN: self._decoder()}
        if self._strip:
            files |= {name: self._describe(name) for name in REFIT_GRAPHS.values()}
        if self._plugin:
            name = plugin_file(self._plugin)
            files[name] = self._describe(name)
        return PlanManifest(
            format=FORMAT,
            target=self.target.name,
            builder=Builder(library.api, library.version, platform_name()),
            compute_capabilities=(self.target.capability,),
            dialect=PLUGIN if self._plugin else STANDARD,
            plugin=self._plugin,
            precision={part: getattr(manifest.precision, part) for part in ("vision", "decoder", "kv_cache")},
            limits=self.limits,
            profiles=decoder_profiles(self.limits),
            bundle_digest=bundle_digest(manifest),
            files=files,
        )

    def _vision(self) -> FileInfo:
        name = self.bundle.manifest.graphs.vision
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            lowering = self._lowering(self.bundle, name, Path(work))
            network = self._network(lowering, lowering.vision(), VISION_PLAN)
            return self._engine(network, vision_shapes(self.bundle, lowering.graph, self.limits), VISION_PLAN)

    def _decoder(self) -> FileInfo:
        name = self.bundle.manifest.graphs.decoder[STANDARD]
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            lowering = self._lowering(self.bundle, name, Path(work))
            network = self._network(lowering, lowering.decoder(self.limits.max_context), DECODER_PLAN)
            if not self._plugin:
                network.check_native(self.bundle.manifest.model.num_layers)
            return self._engine(network, decoder_shapes(lowering.graph, self.limits), DECODER_PLAN)

    def _network(self, lowering: Lowering, model: bytes, plan: str) -> Network:
        library, name = self.target.library, lowering.name
        check_graph(lowering.model, name, library, self.target.capability)
        if self._strip:
            (self.folder / REFIT_GRAPHS[plan]).write_bytes(model)
        return Network(library, model, lowering.folder / name)

    def _engine(self, network: Network, profiles: list[Shapes], name: str) -> FileInfo:
        library = self.target.library
        config = self._config(network, profiles)
        report = self._reporter(name)
        config.progress_monitor = watch = monitor(library, report)
        library.log.lines.clear()
        with interruptible(watch):
            written = write_engine(network, config, self.folder / name)
        if not written:
            raise library.failed(f"build {name} for sm_{self.target.capability}")
        report(STEPS)
        self._keep_timings(config)
        self._finished += STEPS
        return self._describe(name)

    def _describe(self, name: str) -> FileInfo:
        path = self.folder / name
        return FileInfo(path.stat().st_size, sha256(path))

    def _config(self, network: Network, profiles: list[Shapes]) -> Any:
        trt, api = self.target.library.module, self.target.library.api
        config = network.builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is asked for by name
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if self._strip:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # by the weights that it was built with
        for shapes in profiles:
            profile = network.builder.create_optimization_profile()
            for tensor, (least, tuned, most) in shapes.items():
                profile.set_shape(tensor, least, tuned, most)
            config.add_optimization_profile(profile)
        if api == TENSORRT_RTX:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{self.target.capability}"), 0)
        elif api == TENSORRT:  # TensorRT-RTX times nothing while it builds
            self._use_timings(config)
        return config

    def _use_timings(self, config: Any) -> None:
        """Use the timings of the last build, or new ones if those are damaged or of another GPU or TensorRT."""
        for kept in (self._timing.read_bytes() if self._timing.is_file() else b"", b""):
            cache = config.create_timing_cache(kept)
            if cache is not None and config.set_timing_cache(cache, False):
                return

    def _keep_timings(self, config: Any) -> None:
        if self.target.library.api == TENSORRT:
            new = self._timing.with_suffix(".timing.new")
            new.write_bytes(memoryview(config.get_timing_cache().serialize()))
            new.replace(self._timing)

    def _reporter(self, name: str) -> Callable[[int], None]:
        def report(done: int) -> None:
            if self._progress is not None:
                self._progress(self._finished + done, 2 * STEPS, f"building {name}")

        return report


def write_engine(network: Network, config: Any, path: Path) -> bool:
    """Build the engine and write it to `path`, piece by piece from TensorRT 10.13 on; False if it failed.

    Raises:
        OSError: the disk is full, or the like.
    """
    trt, builder = network.library.module, network.builder
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(network.network, config)
        if plan is not None:
            path.write_bytes(memoryview(plan))
        return plan is not None
    writer = _writer(trt, path)
    with writer.file:
        built = bool(builder.build_serialized_network_to_stream(network.network, config, writer))
    if writer.error is not None:
        raise writer.error
    return built


def _writer(trt: Any, path: Path) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc,name-defined,unused-ignore]
        """Takes an engine piece by piece; an error of the disk must not pass through TensorRT's frames."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.file = path.open("wb")
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()
