"""Client libraries that are installed, against a running server: what of the protocol reaches their users.

`make clients` installs those that are small and runs them, `make clients-test` all, and writes the table of
docs/server.md (pytest --clients-table docs/server.md).
"""

import asyncio
import re

import pytest

from support.clients import WHERE, Count, Instructor, OpenAi, Responses
from support.clients_chat import LangChain, LiteLlm, LlamaIndex, PydanticAi
from support.clients_node import AiSdk, AiSdkOpenAi
from support.clients_tasks import Agents, Dspy, Haystack, Outlines, Smolagents
from support.patience import until
from support.served import metric, serving
from support.served_families import CALL, ONE, scripted

CLIENTS = (
    *(OpenAi, Responses, LangChain, LiteLlm, PydanticAi, Agents, Haystack),
    *(AiSdk, AiSdkOpenAi, Instructor, LlamaIndex, Smolagents, Outlines, Dspy),
)
CAPTION = "Describe the picture."
TOOLS = "does not support tools"
FEATURES = ("picture", "words_first", "stream", "turns", "schema", "tools", "call", "overflow", "four", "cancel")
METHODS = {"words_first": "picture"}
TITLES = {"tools": "tools refused", "call": "tools called", "four": "four at once"}
MARKS = ("<!-- clients -->", "<!-- end of clients -->")


@pytest.fixture(scope="module")
def seen(request):
    """(client, feature) -> "yes" or "no"; becomes the table at the end, if one is asked for."""
    found = {}
    yield found
    target = request.config.getoption("--clients-table")
    if target is not None:
        page = target.read_text(encoding="utf-8")
        inner = re.compile(f"(?<={MARKS[0]}\n).*?(?={MARKS[1]})", re.DOTALL)
        target.write_text(inner.sub(lambda old: table(found, old.group()), page), encoding="utf-8")


def title(client):
    return f"{client.package} {client.version()}" + (" (responses)" if client is Responses else "")


def table(found, before=""):
    """The rows of what was found; rows of other clients stay as they were before."""
    names = [TITLES.get(name, name.replace("_", " ")) for name in FEATURES]
    lines = ["| client | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    rows = {row.split("|")[1].strip(): row for row in before.splitlines() if row.startswith("| ")}
    for client in CLIENTS:
        if any(each is client for each, _ in found):
            cells = [found.get((client, name), "-") for name in FEATURES]
            lines.append(f"| {title(client)} | " + " | ".join(cells) + " |")
        else:
            note = r" \(responses\)" if client is Responses else ""
            lines += [row for name, row in rows.items() if re.fullmatch(rf"{client.package} [^ ]+{note}", name)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", CLIENTS, ids=lambda kind: kind.__name__)
def test_a_feature_reaches_the_users_of(kind, feature, address, http, seen, request, tmp_path):
    if kind.missing():
        pytest.skip(f"{kind.package} is not installed; make clients-test installs it")
    if not kind.offers(METHODS.get(feature, feature)):
        pytest.skip(f"{kind.package} does not offer it, or it is not tried")
    seen[kind, feature] = "no"
    if feature == "call":
        called(kind, tmp_path)
    else:
        if feature == "cancel":
            request.getfixturevalue("slow")
        works(kind(f"{address}/v1"), feature, OpenAi(f"{address}/v1"), http)
    seen[kind, feature] = "yes"


def works(client, feature, plain, http):
    """Assert that a feature's answer is the one of the published client, which is compared with an engine elsewhere."""
    match feature:
        case "picture":
            assert client.picture(WHERE, "picture") == plain.picture(WHERE, "picture") == "the red mug"
        case "words_first":
            assert client.picture(WHERE, "words") == "the red mug"
        case "stream":
            assert client.stream(CAPTION) == plain.picture(CAPTION, "picture")
        case "turns":
            # With the answer's boxes, which a stored conversation has, or without.
            whole = Responses(str(plain.client.base_url)).turns("")
            assert client.turns("the red mug") in (plain.turns("the red mug"), whole)
        case "schema":
            assert isinstance(client.schema("How many objects are there?"), Count)
        case "tools":
            with pytest.raises(Exception, match=TOOLS):
                client.tools()
        case "overflow":
            with pytest.raises(Exception, match="maximum context length is"):
                client.overflow("word " * 9000)
        case "four":
            assert asyncio.run(client.four(WHERE)) == ["the red mug"] * 4
        case "cancel":
            ended = 'qwenvl_answers_total{reason="cancelled"}'
            before = metric(http, ended)
            client.cancel(CAPTION)
            until(lambda: metric(http, ended) == before + 1 and metric(http, "qwenvl_answers_running") == 0)


def called(kind, folder):
    """Assert that a client gets a tool's call, and that its result gets an answer."""
    answers = [f"{CALL}<|im_end|>", "It is 12 degrees.<|im_end|>"]
    engine, backend, tokenizer = scripted(folder, "qwen3_vl", *answers, tools=True)
    with serving(engine, limits=ONE) as address:
        assert kind(f"{address}/v1").call() == ("Bern", "It is 12 degrees.")
    prompt = tokenizer.decode([token for token in backend.prompt_ids() if token != -1], errors="replace")
    assert "<tool_response>\n12 degrees in Bern\n</tool_response>" in prompt


def test_a_table_has_a_row_per_client():
    found = {(OpenAi, "picture"): "yes", (OpenAi, "tools"): "no"}
    rows = table(found, "| client | x |\n| dspy 1.0 | yes |\n| openai 0.1 | no |\n").splitlines()
    assert [row.split("|")[1].split()[0] for row in rows] == ["client", "---", "openai", "dspy"]
    assert rows[2].count("|") == len(FEATURES) + 2 and rows[2].count(" yes ") == rows[2].count(" no ") == 1
