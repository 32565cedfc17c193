"""Random requests after the server's own description: no 5xx, and no answer that the description does not know."""

import pytest
from hypothesis import HealthCheck, given, settings

from support.served import serving

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 20


ROUTES = {
    ("get", "/health"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("post", "/v1/responses"),
}


@pytest.fixture(scope="module")
def described(engine):
    with serving(engine, limits={"tokens": 4}) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_all_routes_are_described(described):
    assert {(each.ok().method, each.ok().path) for each in described.get_all_operations()} == ROUTES


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_every_answer_is_as_described(described, method, path):
    checks = schemathesis.checks
    wanted = [checks.not_a_server_error, checks.status_code_conformance]
    wanted += [checks.content_type_conformance, checks.response_schema_conformance]

    @given(described[path][method].as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def ask(case):
        case.call_and_validate(checks=wanted)

    ask()
