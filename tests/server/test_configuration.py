"""Options of `qwenvl serve` from three places: the command line before the environment before the file."""

import argparse
from pathlib import Path

import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.cli import main
from qwenvl_edge.cli.program import _parser
from qwenvl_edge.server.configuration import PREFIX, Configuration

EVERY_KIND = """
port = 8001
api-key-file = "keys"
allow_path = ["pictures", "clips"]
log-prompts = true
max-seconds = 5
log-format = "json"
"""


def options(*words, environ=(), text=None, folder=None):
    """The options as `serve` takes them; text: of a file that --config names."""
    given = ["serve", *words]
    if text is not None:
        (folder / "serve.toml").write_text(text, encoding="utf-8")
        given += ["--config", str(folder / "serve.toml")]
    arguments = _parser().parse_args(given)
    (configuration,) = arguments.run.args
    return configuration.complete(arguments, {PREFIX + name: value for name, value in dict(environ).items()})


def test_the_nearest_source_wins(tmp_path):
    text = "port = 1\nthreads = 1\nmax-rows = 1\n"
    found = options("--port", "3", environ={"PORT": "2", "THREADS": "2"}, text=text, folder=tmp_path)
    assert (found.port, found.threads, found.max_rows, found.max_queue) == (3, 2, 1, 64)
    assert found.bundle is None and found.device == "auto" and found.keep_order is False


def test_every_kind_of_option(tmp_path):
    pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    found = options(text=EVERY_KIND, folder=tmp_path)
    assert (found.port, found.api_key_file, found.log_prompts, found.log_format) == (8001, Path("keys"), True, "json")
    assert found.allow_path == [Path("pictures"), Path("clips")]
    assert found.max_seconds == 5.0 and isinstance(found.max_seconds, float)
    same = options(
        environ={
            "PORT": "8001",
            "API_KEY_FILE": "keys",
            "ALLOW_PATH": "pictures, clips",
            "LOG_PROMPTS": "yes",
            "MAX_SECONDS": "5",
            "LOG_FORMAT": "json",
        }
    )
    apart = {"config": None, "run": None}
    assert vars(same) | apart == vars(found) | apart


def test_the_file_may_be_named_by_the_environment_and_name_the_bundle(tmp_path):
    (tmp_path / "a.toml").write_text('bundle = "robot"\n')
    found = options(environ={"CONFIG": str(tmp_path / "a.toml")})
    assert found.bundle == Path("robot")
    assert options("other", environ={"CONFIG": str(tmp_path / "a.toml")}).bundle == Path("other")


def test_an_empty_variable_counts_as_absent():
    assert options(environ={"PORT": "", "LOG_PROMPTS": ""}).port == 8000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", '"prot" in .* is no option of serve; did you mean "port"'),
        ("wholly-else = 1", "is no option of serve; `qwenvl serve --help`"),
        ("port = 'x'", "'x'; give a whole number"),
        ("port = true", "True; give a whole number"),
        ("port = 1.5", "give a whole number"),
        ("port = [1]", "give a whole number"),
        ("max-seconds = 'soon'", "give a number"),
        ("host = 1", "give a string"),
        ("log-prompts = 2", "give true or false"),
        ("allow-path = 1", "give a list"),
        ("allow-path = [1]", "give a string"),
        ("log-format = 'xml'", "give one of auto, json, text"),
        ("[serve]\nport = 1", "is no option of serve"),
        ("port = ", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    with pytest.raises(QwenVLError, match=words):
        options(text=text, folder=tmp_path)


def test_mistakes_of_the_environment_are_named(tmp_path):
    with pytest.raises(QwenVLError, match=f"the variable {PREFIX}PORT is 'x'; give a whole number"):
        options(environ={"PORT": "x"})
    with pytest.raises(QwenVLError, match="did you mean"):
        options(environ={"PROT": "1"})
    with pytest.raises(QwenVLError, match="cannot read the configuration"):
        options(environ={"CONFIG": str(tmp_path / "none.toml")})


def test_no_bundle_anywhere(capsys, monkeypatch):
    monkeypatch.delenv(f"{PREFIX}BUNDLE", raising=False)
    assert main(["serve"]) == 2
    assert "name the bundle to serve" in capsys.readouterr().err


def test_a_binary_file_is_no_configuration(tmp_path):
    pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    configuration = Configuration(argparse.ArgumentParser())
    configuration.add("--config", type=Path)
    with pytest.raises(QwenVLError, match="is not TOML"):
        configuration.complete(argparse.Namespace(config=tmp_path / "b.toml"), {})
