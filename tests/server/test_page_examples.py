"""The bundle's examples over the server."""

import httpx
import pytest

from support.served import NANO, WAIT_S, serving

KEY = "correct-horse-battery"


def test_examples_and_their_pictures_come_as_they_are(http):
    found = http.get("/page/examples").json()
    assert (
        found["examples"][0]["pictures"] == ["demo.png"]
        and "Where is the red mug?" in found["examples"][0]["questions"]
    )
    assert http.get("/page/examples/demo.png").content == (NANO / "demo.png").read_bytes()


@pytest.mark.parametrize("name", ["bundle.json", "examples.json", "..%2fbundle.json", "%2e%2e/bundle.json", "no.png"])
def test_nothing_else_of_the_bundle_is_sent(http, name):
    assert http.get(f"/page/examples/{name}").status_code == 404


def test_they_need_the_key_and_the_page_does_not(engine):
    with serving(engine, api_keys=(KEY,)) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:
        assert [http.get(path).status_code for path in ("/", "/static/talk.js", "/static/style.css")] == [200] * 3
        assert [http.get(path).status_code for path in ("/page/examples", "/page/examples/demo.png")] == [401] * 2
        assert http.get("/page/examples", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
