from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from qwenvl_edge.bundle.bundle import Bundle
from support.bundles import Exports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = Path(__file__).parent / "data"
# No deadline: how long an example takes says what else the machine does. `print_blob` repeats a failure elsewhere.
hypothesis.settings.register_profile(
    "tests", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")
hypothesis.settings.register_profile("soak", max_examples=3000)  # pytest --hypothesis-profile soak


def pytest_addoption(parser: pytest.Parser) -> None:
    """--soak-minutes N turns on the test that watches memory for so long; --soak-json FILE has it write what it saw."""
    parser.addoption("--soak-minutes", type=float, default=0.0, help="watch a stressed engine for so many minutes")
    parser.addoption("--clients-table", type=Path, default=None, help="page whose table of clients is written anew")
    parser.addoption("--soak-json", type=Path, default=None, help="where to write what it did")


def pytest_configure() -> None:
    """Let Ctrl-C end what the tests start, even if a shell in the background made them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def soak_minutes(request: pytest.FixtureRequest) -> float:
    """Minutes for which a stressed engine should be watched; 0: it should not."""
    minutes: float = request.config.getoption("--soak-minutes")
    return minutes


@pytest.fixture(scope="session")
def soak_json(request: pytest.FixtureRequest) -> Path | None:
    """Where the watch is to be recorded."""
    path: Path | None = request.config.getoption("--soak-json")
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The tiny checkpoint that the golden figures belong to."""
    return DATA / "tiny"


@pytest.fixture(scope="session")
def tiny_exports(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    """Bundles of the tiny checkpoint in any precision, each made once; tests must not change them."""
    exports = Exports(tiny_checkpoint, tmp_path_factory.mktemp("tiny"))
    yield exports
    exports.check_unchanged()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_exports: Exports) -> Bundle:
    """The bundle of the tiny checkpoint as it is exported without options; tests must not change it."""
    bundle = tiny_exports(check=True)
    assert bundle.manifest.parity["passed"]
    return bundle


@pytest.fixture(scope="session")
def nano_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    """Bundles of models/nano in any precision, each made once; tests must not change them."""
    exports = Exports(DATA.parents[1] / "models" / "nano", tmp_path_factory.mktemp("nano"))
    yield exports
    exports.check_unchanged()


@pytest.fixture(scope="session")
def family_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Exports]]:
    """Bundles of a family's recorded checkpoint, by the family's name, each made once; tests must not change them."""

    @functools.cache
    def exports_of(name: str) -> Exports:
        return Exports(DATA / "families" / name, tmp_path_factory.mktemp(name))

    yield exports_of
    for name in DATA.joinpath("families").iterdir():
        if name.is_dir():
            exports_of(name.name).check_unchanged()


@pytest.fixture(scope="session")
def nano(nano_exports: Exports) -> Path:
    """The folder of the bundle of models/nano that is exported without options; tests must not change it."""
    return nano_exports().path


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A small model of random weights that chats; seq_length is 16, so that prompts have many dynamic-NTK factors."""
    pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")
    from support.random_checkpoint import GENERATION, write_checkpoint

    folder = tmp_path_factory.mktemp("random")
    exports = Exports(write_checkpoint(folder / "checkpoint", seed=5, generation=GENERATION), folder)
    yield exports(check=True)
    exports.check_unchanged()


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes random checkpoints of a few hundred kilobytes: see random_checkpoint.write_checkpoint."""
    from support.random_checkpoint import write_checkpoint

    return lambda name="checkpoint", **options: write_checkpoint(tmp_path / name, **options)
