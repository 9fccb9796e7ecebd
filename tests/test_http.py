"""The server's application: what it answers, and what it refuses. A real policy of random weights writes the lists."""

import itertools
import json
import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import LONG, N, open_session, write_policy
from starlette.testclient import TestClient
from support import examples

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.jsonl import read
from convrec_r1.data.schema import Message
from convrec_r1.lists import Item, fold
from convrec_r1.serve.config import ServeConfig
from convrec_r1.serve.hf import HFStepper
from convrec_r1.serve.http.app import make_app
from convrec_r1.serve.http.feedback import Feedback, Full
from convrec_r1.serve.http.service import Served, Service
from convrec_r1.serve.http.titles import Titles
from convrec_r1.serve.request import Request
from convrec_r1.serve.session import Session
from convrec_r1.serve.stepper import Job

pytestmark = pytest.mark.long
ASKED = {"messages": "I loved Alien. Something scary in space?"}
TURNS = [{"role": "user", "content": ASKED["messages"]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def session(folder):
    session = open_session(folder)
    yield session
    session.close(wait=False)


def client_of(*sessions: Session, key: str | None = None, hosts: tuple[str, ...] = (), **options) -> TestClient:
    """A client of an application without sockets."""
    feedback = options.pop("feedback_file", None)
    service = Service(ServeConfig(**options), feedback)
    service.open([Served.of(f"policy-{number}", one) for number, one in enumerate(sessions)])
    app: FastAPI = make_app(service, key=key, hosts=hosts)
    app.state.service = service
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(session):
    return client_of(session, session)


def events(text: str) -> list[tuple[str, dict]]:
    """The events of a stream with names."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


def names(body: dict) -> list[str]:
    return [str(Item(one["title"], one["year"])) for one in body["items"]]


def test_a_list_is_what_the_session_writes(client, session):
    wanted = session.submit(Request(ASKED["messages"], 3)).result()
    body = client.post("/v1/recommendations", json={**ASKED, "n": 3}).json()
    assert body["items"] == [one.as_dict() for one in wanted]
    assert (body["model"], body["remarks"]) == ("policy-0", [])
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert body["usage"]["completion_tokens"] >= 3


def test_a_stream_has_the_same_items(client):
    asked = {**ASKED, "messages": TURNS, "model": "policy-1"}
    whole = client.post("/v1/recommendations", json=asked).json()
    response = client.post("/v1/recommendations", json={**asked, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *items, (last, done) = events(response.text)
    assert [name for name, _ in items] == ["item"] * N
    assert [item for _, item in items] == whole.pop("items")
    assert (last, done) == ("done", whole)


def test_what_is_left_out(client, session):
    first = client.post("/v1/recommendations", json=ASKED).json()
    seen, excluded = first["items"][0], first["items"][1]
    asked = {
        "seen": [seen["title"]],
        "exclude": [{"title": excluded["title"], "year": excluded["year"]}, names(first)[2]],
    }
    second = client.post("/v1/recommendations", json={**ASKED, **asked}).json()
    assert not set(names(first)[:3]) & set(names(second))
    genre = client.post("/v1/recommendations", json={**ASKED, "where": "genre=war and year<1960", "n": 50}).json()
    wanted = {
        str(item)
        for item, fields in session.planner.known.fields.items()
        if "war" in fields["genre"] and item.year is not None and item.year < 1960
    }
    assert 0 < len(wanted) < 50
    assert set(names(genre)) == wanted
    assert genre["remarks"][0].startswith(f"{len(wanted)} of 50: ")


def test_sampling_follows_the_seed(client):
    asked = {**ASKED, "temperature": 1.5, "top_p": 0.9, "seed": 7}
    lists = [names(client.post("/v1/recommendations", json=one).json()) for one in (asked, asked, {**asked, "seed": 8})]
    assert lists[0] == lists[1] != lists[2]


def test_chat_is_the_list_as_text(client):
    asked = {"model": "policy-0", "messages": [{"role": "system", "content": "Be brief."}, *TURNS], "n_items": 3}
    body = client.post("/v1/chat/completions", json=asked).json()
    listed = client.post("/v1/recommendations", json={**ASKED, "n": 3}).json()
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "\n".join(names(listed))
    assert (choice["finish_reason"], body["items"], body["usage"]) == ("stop", listed["items"], listed["usage"])
    parts = [{"role": "user", "content": [{"type": "text", "text": ASKED["messages"]}]}]
    assert client.post("/v1/chat/completions", json={**asked, "messages": parts}).json()["items"] == listed["items"]
    cut = client.post("/v1/chat/completions", json={**asked, "max_tokens": 1}).json()
    assert cut["usage"]["completion_tokens"] == 1
    assert cut["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("temperature", [0, 1])
def test_lists_with_other_limits_of_tokens_share_a_batch(session, temperature):
    planner = session.planner
    jobs = [
        planner.plan(Request(f"Like Alien {'x ' * (k or 5)}", temperature=temperature, seed=k or 0, max_tokens=k)).job
        for k in (3, 9, 2, None)
    ]

    def written(chosen: dict[int, Job]) -> dict[int, list[int]]:
        stepper, tokens, ended = HFStepper(planner.policy, planner.constraint), {key: [] for key in chosen}, set()
        for key, job in chosen.items():
            stepper.add(key, job)
        steps = [stepper.step()]
        while steps[-1]:
            steps.append(stepper.step())
        for one in itertools.chain(*steps):
            tokens[one.key] += one.tokens
            ended |= {one.key} if one.finished else set()
        assert len(steps[0]) == len(ended) == len(chosen)  # the first step writes a token of each
        return tokens

    together = written(dict(enumerate(jobs)))
    assert together == {key: written({key: job})[key] for key, job in enumerate(jobs)}
    assert [len(together[key]) for key in (0, 1, 2)] == [3, 9, 2]
    assert len(together[3]) > 9


WRONG = {
    "no JSON": ("recommendations", b"{", 422, "not_json"),
    "deep": ("recommendations", b"[" * 100_000, 400, "http_error"),
    "half a character": ("recommendations", b'{"messages": "\\ud800"}', 422, "invalid_body"),
    "no UTF-8": ("recommendations", b'{"messages": "\xff"}', 400, "http_error"),
    "not a number": ("recommendations", {**ASKED, "temperature": float("nan")}, 422, "invalid_body"),
    "a number of 5,000 digits": ("recommendations", b'{"n": ' + b"9" * 5000 + b"}", 400, "http_error"),
    "no object": ("chat/completions", b"null", 422, "invalid_body"),
    "a list": ("chat/completions", [], 422, "invalid_body"),
    "no messages": ("recommendations", {}, 422, "invalid_body"),
    "blank": ("recommendations", {"messages": " \n"}, 422, "limit_exceeded"),
    "role": ("recommendations", {"messages": [{"role": "tool", "content": "x"}]}, 422, "invalid_body"),
    "unknown key": ("recommendations", {**ASKED, "k": 3}, 422, "invalid_body"),
    "text for a number": ("recommendations", {**ASKED, "n": "3"}, 422, "invalid_body"),
    "n": ("recommendations", {**ASKED, "n": 101}, 422, "limit_exceeded"),
    "turns": ("recommendations", {"messages": TURNS * 101}, 422, "limit_exceeded"),
    "characters": ("recommendations", {"messages": "a" * 8001}, 422, "limit_exceeded"),
    "titles": ("recommendations", {**ASKED, "seen": ["a"] * 2001}, 422, "limit_exceeded"),
    "body": ("recommendations", {**ASKED, "seen": ["a" * 499] * 600}, 413, "body_too_large"),
    "filter": ("recommendations", {**ASKED, "where": "genre="}, 400, "invalid_request"),
    "field": ("recommendations", {**ASKED, "where": "colour=red"}, 400, "invalid_request"),
    "model": ("recommendations", {**ASKED, "model": "gpt"}, 404, "model_not_found"),
    "choices": ("chat/completions", {"messages": TURNS, "n": 2}, 400, "unsupported_parameter"),
    "tools": ("chat/completions", {"messages": TURNS, "tools": [{"type": "function"}]}, 400, "unsupported_parameter"),
    "stop": ("chat/completions", {"messages": TURNS, "stop": ["\n"]}, 400, "unsupported_parameter"),
    "logprobs": ("chat/completions", {"messages": TURNS, "logprobs": True}, 400, "unsupported_parameter"),
    "system only": ("chat/completions", {"messages": [{"role": "system", "content": "x"}]}, 422, "no_text"),
    "image": (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        422,
        "invalid_body",
    ),
    "thumb": ("feedback", {**ASKED, "item": {"title": "Heat"}, "liked": True}, 404, "no_feedback"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_in_openais_form(client, name):
    path, body, status, code = WRONG[name]
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = client.post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert set(error) == {"message", "type", "code"}
    assert 10 < len(error["message"]) < 400


def test_other_paths_and_kinds_are_refused_in_the_same_form(client):
    for response, status in (
        (client.get("/v1/nothing"), 404),
        (client.get("/v1/recommendations"), 405),
        (
            client.post("/v1/recommendations", content=b"{}"),
            422,
        ),  # no content type: a form of another site could send it
        (client.post("/v1/recommendations", content=b"{}", headers={"Content-Type": "text/plain"}), 422),
    ):
        assert response.status_code == status
        assert set(response.json()) == {"error"}


def test_errors_do_not_repeat_what_was_sent(client):
    body = {"messages": [{"role": "user", "content": 5, "password": "hunter2"}], "hunter3": "hunter2"}
    assert "hunter2" not in client.post("/v1/recommendations", json=body).text


def test_text_is_neither_rendered_nor_executed(client, tmp_path):
    said = "{{ 7*7 }} {% for x in ().__class__.__base__.__subclasses__() %}{% endfor %} ${hydra:runtime.cwd} $(id) <script>"
    body = client.post("/v1/recommendations", json={"messages": said}).json()
    assert len(body["items"]) == N


def test_the_key_is_asked_for(session):
    client = client_of(session, key="correct horse")
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "correct horse"},
        {"Authorization": "Bearer é"},
    ):
        raw = {name: value.encode() for name, value in headers.items()}
        for method, path in (("POST", "/v1/recommendations"), ("GET", "/v1/models"), ("GET", "/metrics")):
            response = client.request(method, path, headers=raw)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "Bearer correct horse"}).status_code == 200
    assert client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["security"] == [{"HTTPBearer": []}]


def test_pages_of_other_sites_are_kept_out(session):
    client = client_of(session, hosts=("127.0.0.1", "localhost"))
    assert client.get("/health", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
    origin = {"Origin": "https://shop.example"}
    assert "access-control-allow-origin" not in client.get("/health", headers={**origin, "Host": "localhost"}).headers
    open_to = client_of(session, cors=["https://shop.example"])
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    response = open_to.options("/v1/recommendations", headers=preflight)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin["Origin"])
    assert (
        open_to.options("/v1/recommendations", headers={**preflight, "Origin": "https://evil.example"}).status_code
        == 400
    )


def test_headers_protect_the_page(client):
    response = client.get("/v1/models")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert "script-src" not in response.headers["Content-Security-Policy"]
    assert len(response.headers["X-Request-ID"]) == 32


def test_the_documentation_needs_no_other_server(client):
    page = client.get("/docs").text
    found = [part.split('"')[0] for part in page.replace("'", '"').split('"/')[1:]]
    assert len(found) >= 4
    assert "//" not in page.replace("<!--", "").replace("// ", "").replace("//www.w3.org", "")
    for path in found:
        if not path.startswith("docs/oauth2"):
            assert client.get(f"/{path}").status_code == 200, path


def test_models_and_health(client, session):
    models = client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["policy-0", "policy-1"]
    first = models["data"][0]
    assert (first["n"], first["constraint"], first["feedback"]) == (N, "catalog", False)
    assert first["catalog"] == len(session.planner.known.catalog)
    assert first["fields"] == ["genre", "title", "year"]
    assert client.get("/v1/models/policy-1").json() == models["data"][1]
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ready", "models": ["policy-0", "policy-1"]}


def test_health_says_what_it_cannot_do(folder):
    service = Service(ServeConfig())
    client = TestClient(make_app(service))

    def state() -> tuple[int, str, int]:
        health = client.get("/health")
        return health.status_code, health.json()["status"], client.post("/v1/recommendations", json=ASKED).status_code

    assert state() == (503, "loading", 503)
    session = open_session(folder)
    service.open([Served.of("policy", session)])
    assert state() == (200, "ready", 200)
    session.close()  # as if its thread had died
    assert state() == (503, "failed", 503)
    service.stop()
    assert state() == (503, "stopping", 503)


def test_metrics_count(session):
    client = client_of(session)
    client.post("/v1/recommendations", json={**ASKED, "n": 4})
    client.post("/v1/recommendations", json={})
    client.get("/somewhere/else")
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert lines['convrec_r1_requests_total{path="/v1/recommendations",status="200"}'] == "1.0"
    assert lines['convrec_r1_requests_total{path="/v1/recommendations",status="422"}'] == "1.0"
    assert not any("somewhere" in line for line in lines)
    assert lines["convrec_r1_items_total"] == "4.0"
    assert float(lines['convrec_r1_tokens_total{kind="completion"}']) >= 4
    assert lines["convrec_r1_waiting"] == lines["convrec_r1_running"] == "0.0"
    assert lines["convrec_r1_first_item_seconds_count"] == "1.0"


def test_a_list_that_takes_too_long_is_given_up(session):
    client = client_of(session, timeout=0.2)
    service = client.app.state.service
    started = time.monotonic()
    response = client.post("/v1/recommendations", json=LONG)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    *_, (name, error) = events(client.post("/v1/recommendations", json={**LONG, "stream": True}).text)
    assert (name, error["error"]["code"]) == ("error", "timeout")
    chunks = client.post("/v1/chat/completions", json={"messages": TURNS, "n_items": 100, "stream": True}).text
    assert json.loads(chunks.strip().split("data: ")[-1])["error"]["code"] == "timeout"
    assert time.monotonic() - started < 2.5
    assert (service.under_way, session.unanswered) == (0, 0)


# Titles.

WORDS = st.lists(
    st.sampled_from(["the", "The", "a", "Alien", "aliens", "Ål", "x-men", "2001", "étude"]), min_size=1, max_size=4
)
ITEMS = st.lists(st.builds(Item, WORDS.map(" ".join), st.none() | st.integers(1950, 1953)), unique=True, max_size=30)


@settings(max_examples=examples(100))
@given(ITEMS, st.sampled_from(["", "a", "AL", "the a", "å", "men", "20", "zzz"]), st.integers(1, 40))
def test_titles_are_found_by_the_beginning_of_a_word(items, query, limit):
    found, more = Titles(items).find(query, limit)
    wanted = {
        item for item in items
        if any(fold(item.title).startswith(fold(query), at) and (at == 0 or not fold(item.title)[at - 1].isalnum())
               for at in range(len(fold(item.title))))
    }  # fmt: skip
    assert len(found) == min(limit, len(wanted))
    assert set(found) <= wanted
    assert len(set(found)) == len(found)
    assert more == (len(wanted) > limit)


def test_the_catalog_is_searched(client):
    body = client.get("/v1/catalog", params={"query": "godf", "limit": 5}).json()
    assert body["items"][0]["title"].startswith("The Godfather")
    assert client.get("/v1/catalog", params={"query": "the", "limit": 1}).json()["more"]
    assert client.get("/v1/catalog", params={"limit": 101}).status_code == 422


# Thumbs.

HEAT, FARGO = Item("Heat", 1995), Item("Fargo", 1996)
SAID = (Message("user", "Like Thief?"),)


def catalog_of(folder: Path) -> Path:
    (folder / "catalog.csv").write_text("title,year\nHeat,1995\nFargo,1996\n")
    return folder / "thumbs.jsonl"


def test_thumbs_are_read_back_as_conversations(session, tmp_path):
    path = tmp_path / "thumbs.jsonl"
    client = client_of(session, feedback_file=Feedback(path, 1 << 20))
    items = client.post("/v1/recommendations", json=ASKED).json()["items"]
    thumb = {"messages": TURNS, "item": {"title": items[0]["title"].lower(), "year": items[0]["year"]}, "liked": True}
    assert client.post("/v1/feedback", json={**thumb, "seen": ["Heat"]}).status_code == 204
    (kept,) = read(path)
    assert kept.ground_truth == (Item(items[0]["title"], items[0]["year"]),)  # as the catalog has it
    assert (kept.messages, kept.seen) == ((Message("user", ASKED["messages"]),), ("Heat",))
    assert client.post("/v1/feedback", json={**thumb, "item": {"title": "Not a film"}}).status_code == 400
    assert client.get("/v1/models").json()["data"][0]["feedback"]


THUMBS = st.lists(
    st.tuples(st.sampled_from([HEAT, FARGO]), st.sampled_from(["a", "b"]), st.none() | st.booleans()), max_size=12
)


@settings(max_examples=examples(50))
@given(THUMBS, st.integers(0, 12))
def test_the_last_thumb_counts_also_after_a_restart(tmp_path_factory, thumbs, at):
    path = tmp_path_factory.mktemp("thumbs") / "thumbs.jsonl"
    file, wanted = Feedback(path, 1 << 20), {}
    for number, (item, conversation, liked) in enumerate(thumbs):
        if number == at:
            file.close()
            file = Feedback(path, 1 << 20)
        file.keep(SAID, item, liked, conversation=conversation)
        wanted[conversation, item] = liked
    file.close()
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    assert sorted(str(row["ground_truth"]) for row in rows if row["ground_truth"]) == sorted(
        str([list(item)]) for (_, item), liked in wanted.items() if liked
    )
    assert len(rows) == sum(liked is not None for liked in wanted.values())
    if any(wanted.values()):
        kept = read(path)
        assert len({one.cluster for one in kept}) == len({key[0] for key, liked in wanted.items() if liked})


def test_a_thumb_that_was_not_written_to_its_end_is_dropped(tmp_path):
    path = tmp_path / "thumbs.jsonl"
    file = Feedback(path, 1 << 20)
    file.keep(SAID, HEAT, True)
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    file = Feedback(path, 1 << 20)
    file.keep(SAID, FARGO, True)
    file.close()
    assert [one.ground_truth for one in read(path)] == [(HEAT,), (FARGO,)]


def test_a_file_of_thumbs_is_bounded_and_belongs_to_one_server(tmp_path):
    path = tmp_path / "thumbs.jsonl"
    file = Feedback(path, 1024)
    with pytest.raises(UserError, match="another server"):
        Feedback(path, 1024)
    file.keep(SAID, HEAT, True)
    with pytest.raises(Full):
        file.keep([Message("user", "a" * 1000)], HEAT, True)
    file.close()
    assert path.stat().st_size <= 1024
    (tmp_path / "other.jsonl").write_text("[1, 2]\n")
    with pytest.raises(UserError, match="no file of thumbs"):
        Feedback(tmp_path / "other.jsonl", 1024)
    with pytest.raises(UserError, match="cannot be written"):
        Feedback(tmp_path, 1024)
