"""The server against its OpenAPI document: Schemathesis makes requests that the document allows, and others."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import open_session, write_policy
from support import examples

from convrec_r1.serve.config import ServeConfig
from convrec_r1.serve.http.app import make_app
from convrec_r1.serve.http.feedback import Feedback
from convrec_r1.serve.http.service import Served, Service

pytestmark = pytest.mark.long
NOT_SAID = [positive_data_acceptance]
"""The document does not say which titles are in the catalog, which filters can be read, and what the limits are."""


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    folder = write_policy(tmp_path_factory.mktemp("policy"))
    session = open_session(folder)
    service = Service(ServeConfig(max_n=3, n=2), Feedback(folder / "thumbs.jsonl", 1 << 20))
    service.open([Served.of("policy", session, 2)])
    yield schemathesis.openapi.from_asgi("/openapi.json", make_app(service))
    session.close(wait=False)


api = schemathesis.pytest.from_fixture("document")


@api.parametrize()
@settings(max_examples=examples(12), deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_what_the_document_says(case):
    case.call_and_validate(excluded_checks=NOT_SAID)
