"""TensorRT plans beside a bundle: `qwenvl build` writes them, a backend checks them before it deserialises one.

    <bundle>/plans/<target>/plan.json      the manifest below
                            vision.plan    serialized engine of vision.onnx
                            decoder.plan   serialized engine of one decoder dialect
                            *.so           the plugin, where the "plugin" dialect needs it
                            *.refit.onnx   of plans without weights: the two graphs as they were built, whose weights
                                           lie in the bundle and are put into the engines when they are loaded
    <bundle>/plans/<target>.timing         TensorRT's timing cache: speeds up the next build, and may be missing

A plan folder is whole or not there. bundle.json does not list it: a plan is a cache, which can be built again.

plan.json:

    {"format": 1, "target": "sm_86",
     "builder": {"api": "tensorrt_rtx", "version": "1.7.1.116", "platform": "linux-x86_64"},
     "compute_capabilities": [86],
     "dialect": "standard", "plugin": "",
     "precision": {"vision": "fp16", "decoder": "fp16", "kv_cache": "float"},
     "limits": {"max_context": 2048, "max_batch": 1, "max_images": 1, "chunk": 256},
     "profiles": {"decode": {"index": 0, "tokens": [1, 1, 1], "rows": [1, 1, 1]},
                  "prefill": {"index": 1, "tokens": [1, 256, 256], "rows": [1, 1, 16]},
                  "verify": {"index": 2, "tokens": [1, 8, 16], "rows": [1, 8, 16]}},
     "bundle_digest": "64 hexadecimal digits",
     "files": {"vision.plan": {"size": .., "sha256": ".."}, "decoder.plan": {..}}}

"dialect" is "standard" (TensorRT's own cache layers) or "plugin"; then "plugin" is "<file> <version>", the file lies in
the folder and is listed under "files".

The engines have the tensors of the graph contract, with these narrower shapes (N pictures, B rows, T tokens, K logits):
  - C is `limits.max_context` in every cache: TensorRT's cache update wants a fixed capacity.
  - past_key_values.{i}.* and present.{i}.* are bound to the same address: the update is made in place.
  - 1 <= N <= max_images, 1 <= B <= max_batch; T lies within the profile's `tokens` and K within its `rows`
    (minimum, what it is tuned for, maximum). K is at least 1: a caller that wants no logits asks for one row and
    drops it. vision.plan has one profile, number 0.
  - Floats at the border are float32, cache and present are the decoder graph's, indices are int64.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.files import HASHED_AT_OPEN_BYTES, FileInfo, check_files
from qwenvl_edge.bundle.hashing import LargeFile
from qwenvl_edge.bundle.manifest import Manifest
from qwenvl_edge.bundle.records import Document, read_object, read_record
from qwenvl_edge.errors import BackendError, BundleError
from qwenvl_edge.machine.urls import show

FORMAT = 1
PLANS_FOLDER = "plans"
PLAN_NAME = "plan.json"
VISION_PLAN = "vision.plan"
DECODER_PLAN = "decoder.plan"
REFIT_GRAPHS = {VISION_PLAN: "vision.refit.onnx", DECODER_PLAN: "decoder.refit.onnx"}
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt_rtx"
PLUGIN_OP = "KVCacheAttention"
PROFILES = ("decode", "prefill", "verify")


@dataclass(frozen=True)
class Builder:
    """Needs of a plan: the API ("tensorrt", "tensorrt_rtx"), its exact version, and the platform."""

    api: str
    version: str
    platform: str


@dataclass(frozen=True)
class PlanLimits:
    """Tokens of a conversation (= capacity of every cache), rows of a batch, pictures of a call, tokens of a call."""

    max_context: int
    max_batch: int
    max_images: int
    chunk: int


@dataclass(frozen=True)
class Profile:
    """An optimisation profile of decoder.plan; (minimum, tuned for, maximum) of T and K."""

    index: int
    tokens: tuple[int, int, int]
    rows: tuple[int, int, int]


@dataclass(frozen=True)
class PlanManifest(Document):
    """plan.json. compute_capabilities are 10 * major + minor; plugin is empty without one."""

    FILE_NAME: ClassVar[str] = PLAN_NAME

    format: int
    target: str
    builder: Builder
    compute_capabilities: tuple[int, ...]
    dialect: str
    plugin: str
    precision: dict[str, str]
    limits: PlanLimits
    profiles: dict[str, Profile]
    bundle_digest: str
    files: dict[str, FileInfo]

    @classmethod
    def from_json(cls, text: str) -> PlanManifest:
        """Read the text of a plan.json; unknown keys, missing keys and wrong types are errors.

        Raises:
            BundleError: says which key is wrong and how.
        """
        raw = read_object(text, PLAN_NAME, BundleError)
        if raw.get("format") != FORMAT:
            raise BundleError(f"{PLAN_NAME} has format {show(raw.get('format'))}, this version reads format {FORMAT}.")
        manifest = read_record(cls, raw, PLAN_NAME, BundleError)
        _check(manifest)
        return manifest


@dataclass(frozen=True)
class Machine:
    """The machine that runs plans: the installed API and version, the platform, the GPU (10 * major + minor)."""

    builder: Builder
    compute_capability: int


@dataclass(frozen=True)
class Plan:
    """An opened, checked plan; `vision` and `decoder` are the paths of its engines."""

    path: Path
    manifest: PlanManifest
    rebuild: str  # the command that makes it again
    unhashed: tuple[LargeFile, ...] = field(default=(), repr=False, compare=False)  # as of a Bundle

    @classmethod
    def open(cls, bundle: Bundle, target: str) -> Plan:
        """Open the plan `target` of `bundle` and check its files, as Bundle.open does.

        Raises:
            BundleError: it is missing, damaged, altered, of another format, or was built from another bundle.
        """
        folder = bundle.path / PLANS_FOLDER / target
        rebuild = f"qwenvl build {bundle.path} --target {target}"
        if not folder.is_dir():
            raise BundleError(f'there is no plan at "{folder}"; make one with `{rebuild}`.')
        remedy = f"build it again with `{rebuild} --force`"
        try:
            text = (folder / PLAN_NAME).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f'cannot read "{folder / PLAN_NAME}" ({error}); {remedy}.') from None
        try:
            manifest = PlanManifest.from_json(text)
        except BundleError as error:
            reason = str(error).rstrip(".")
            raise BundleError(f'the plan "{folder}" cannot be used: {reason}; {remedy}.') from None
        plan = cls(folder, manifest, f"{rebuild} --force")
        if manifest.bundle_digest != bundle_digest(bundle.manifest):
            raise BundleError(f'the plan "{folder}" was built from another bundle; {remedy}.')
        return dataclasses.replace(plan, unhashed=plan.check_files(HASHED_AT_OPEN_BYTES))

    @property
    def vision(self) -> Path:
        """Path of the engine of vision.onnx."""
        return self.path / VISION_PLAN

    @property
    def decoder(self) -> Path:
        """Path of the decoder's engine."""
        return self.path / DECODER_PLAN

    @property
    def is_stripped(self) -> bool:
        """True if the engines come without their weights."""
        return set(REFIT_GRAPHS.values()) <= set(self.manifest.files)

    def check_files(self, hash_up_to_bytes: int | None = None) -> tuple[LargeFile, ...]:
        """Check that both engines are there, their sizes, and the SHA-256 of those up to a size (None: of all).

        Returns those that were not hashed.

        Raises:
            BundleError: names the first file that is missing, truncated or altered.
        """
        remedy = f"build it again with `{self.rebuild}`"
        files = self.manifest.files
        return check_files(self.path, files, hash_up_to_bytes, what="plan", listed_in=PLAN_NAME, remedy=remedy)

    def mismatch(self, machine: Machine) -> str:
        """Return why this plan does not run on `machine`, as half a sentence; empty if it does."""
        have, need = machine.builder, self.manifest.builder
        if (have.api, have.version) != (need.api, need.version):
            return f"was built by {need.api} {need.version}, but {have.api} {have.version} is installed"
        if have.platform != need.platform:
            return f"was built for {need.platform}, but this machine is {have.platform}"
        if machine.compute_capability not in self.manifest.compute_capabilities:
            names = ", ".join(f"sm_{number}" for number in self.manifest.compute_capabilities)
            return f"was built for {names}, but this GPU is sm_{machine.compute_capability}"
        return ""

    def check_machine(self, machine: Machine) -> None:
        """Check, before anything is deserialised, that the plan was built for this machine.

        Raises:
            BackendError: says what differs, and the command that builds a plan for this machine.
        """
        if reason := self.mismatch(machine):
            bundle = self.path.parent.parent
            raise BackendError(
                f'the plan "{self.path}" {reason}; build one here with `qwenvl build {bundle} --target local`.'
            )


def plan_targets(bundle_path: Path) -> list[str]:
    """Return the names of the plans beside the bundle in `bundle_path`, sorted, without unfinished ones."""
    folder = bundle_path / PLANS_FOLDER
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and "." not in path.name)


def choose_plan(bundle: Bundle, machine: Machine) -> Plan:
    """Return the plan of `bundle` that runs on `machine`: the one named "local" before others, then by name.

    Raises:
        BundleError: a plan beside the bundle is damaged or belongs to another bundle, and none fits.
        BackendError: there is none, or none fits; says why for each, and the command that builds one.
    """
    reasons, damaged = [], None
    for target in sorted(plan_targets(bundle.path), key=lambda name: (name != "local", name)):
        try:
            plan = Plan.open(bundle, target)
        except BundleError as error:
            damaged = error
            continue
        reason = plan.mismatch(machine)
        if not reason:
            return plan
        reasons.append(f"{target} {reason}")
    if damaged is not None:
        raise damaged
    found = "; ".join(reasons) or "there is none"
    raise BackendError(
        f'no plan of the bundle "{bundle.path}" runs here ({found}); '
        f"build one with `qwenvl build {bundle.path} --target local`."
    )


def platform_name() -> str:
    """Return the operating system and processor that plans are tied to, such as "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


def bundle_digest(manifest: Manifest) -> str:
    """Return a SHA-256 over those of all files of a bundle: equal for copies, another for another export."""
    return hashlib.sha256(json.dumps({n: f.sha256 for n, f in sorted(manifest.files.items())}).encode()).hexdigest()


def plugin_file(plugin: str) -> str:
    """Return the file name in a manifest's entry "<file> <version>"."""
    return plugin.rpartition(" ")[0]


def plugin_version(plugin: str) -> str:
    """Return the op's version in such an entry."""
    return plugin.rpartition(" ")[2]


def _check(manifest: PlanManifest) -> None:
    needed = [VISION_PLAN, DECODER_PLAN, *([plugin_file(manifest.plugin)] if manifest.plugin else [])]
    graphs = [name for name in REFIT_GRAPHS.values() if name in manifest.files]
    if graphs:
        needed += REFIT_GRAPHS.values()
    if set(manifest.files) != set(needed) or any(Path(name).name != name for name in needed):
        raise BundleError(f'{PLAN_NAME}: "files" must list {" and ".join(needed)} in this folder and nothing else.')
    if set(manifest.profiles) != set(PROFILES):
        raise BundleError(f'{PLAN_NAME}: "profiles" must be {", ".join(PROFILES)}.')
    if manifest.builder.api not in (TENSORRT, TENSORRT_RTX):
        raise BundleError(f'{PLAN_NAME}: builder.api is "{manifest.builder.api}"; it must be tensorrt or tensorrt_rtx.')
    for limit, value in dataclasses.asdict(manifest.limits).items():
        if value < 1:
            raise BundleError(f"{PLAN_NAME}: limits.{limit} is {value}; it must be at least 1.")
    for name, profile in manifest.profiles.items():
        for what, (least, tuned, most) in (("tokens", profile.tokens), ("rows", profile.rows)):
            if not 1 <= least <= tuned <= most:
                raise BundleError(f"{PLAN_NAME}: {what} of the profile {name} must be three rising numbers from 1 on.")
