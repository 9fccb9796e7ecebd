"""The server on real sockets: clients that leave, dawdle or come in crowds, and its end."""

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from serving import LONG, N, in_thread, open_session, post, read_all, running, write_policy

from convrec_r1.base.errors import UserError
from convrec_r1.serve.http.server import listen
from convrec_r1.serve.http.service import Served

pytestmark = pytest.mark.long
TURNS = [{"role": "user", "content": "I loved Alien. Something scary in space?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def served(folder):
    session = open_session(folder)
    yield Served.of("policy", session)
    session.close(wait=False)


@pytest.fixture(scope="module")
def server(served):
    with running(served, key="secret") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_the_official_client(client):
    assert [model.id for model in client.models.list()] == ["policy"]
    body = client.chat.completions.create(
        model="policy", messages=TURNS, extra_body={"n_items": 3, "where": "year>1990"}
    )
    lines = body.choices[0].message.content.splitlines()
    assert len(lines) == 3
    assert all(int(line[-5:-1]) > 1990 for line in lines)
    assert body.usage.completion_tokens > 3
    assert [item["title"] in line for item, line in zip(body.items, lines, strict=True)] == [True] * 3


def test_the_official_client_streams(client):
    asked = {"model": "policy", "messages": TURNS, "temperature": 1, "seed": 3, "max_tokens": 500}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(text.splitlines()) == N
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (N + 1) + ["stop"]
    with client.chat.completions.stream(model="policy", messages=TURNS) as stream:
        assert stream.get_final_completion().choices[0].message.content


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (openai.NotFoundError, {"model": "gpt-4"}),
        (openai.BadRequestError, {"n": 2}),
        (openai.BadRequestError, {"extra_body": {"where": "genre="}}),
        (openai.UnprocessableEntityError, {"temperature": 9}),
    ],
)
def test_the_official_client_understands_errors(client, error, given):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "policy", "messages": TURNS, **given})
    assert caught.value.body["message"]
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_requests_that_come_together_share_a_batch_and_are_answered_like_alone(served):
    def ask(number: int) -> dict:
        body = {"messages": f"Number {number}", "temperature": 1, "seed": number}
        answer = httpx.post(f"{server.url}/v1/recommendations", json=body, timeout=60)
        return {"status": answer.status_code, "items": [(i["title"], i["year"]) for i in answer.json()["items"]]}

    with running(served) as server, ThreadPoolExecutor(8) as crowd:
        together = list(crowd.map(ask, range(8)))
        assert together == [ask(number) for number in range(8)]
        assert len({str(one) for one in together}) > 4


def test_when_it_is_full(served):
    with running(served, limit=1) as server:
        url = f"{server.url}/v1/recommendations"
        first = in_thread(lambda: httpx.post(url, json=LONG, timeout=60))
        server.wait(lambda: server.service.under_way)
        answer = httpx.post(url, json={"messages": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
        assert httpx.get(f"{server.url}/health").status_code == 200
        # The official client waits and tries again.
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=20) as client:
            assert client.chat.completions.create(model="policy", messages=TURNS).choices
        assert first().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_written_for(served, stream):
    with running(served) as server:
        connection = server.connect()
        connection.sendall(post("/v1/recommendations", {**LONG, "stream": stream}))
        server.wait(lambda: served.session.unanswered)
        if stream:
            assert b"event: item" in connection.recv(4096) + connection.recv(4096)
        written = served.session.unanswered
        connection.close()
        server.wait(lambda: server.idle, 2)
        assert written == 1
        assert b"convrec_r1_cancelled_total 1.0" in server.service.metrics.page()
        assert server.service.answered == 0


def test_clients_that_leave_at_any_moment_leave_nothing_behind(served):
    with running(served) as server:
        for number in range(60):
            connection = server.connect()
            whole = post("/v1/recommendations", {**LONG, "stream": bool(number % 2)})
            connection.sendall(whole[: len(whole) * (number + 1) // 50])
            time.sleep(number % 7 / 500)
            connection.close()
        server.wait(lambda: server.idle)
        assert httpx.post(f"{server.url}/v1/recommendations", json={"messages": "x"}).status_code == 200


def test_slow_clients_hold_nothing(served):
    whole = post("/v1/recommendations", {"messages": "x"})
    with running(served, read_timeout=0.5, connections=40) as server:
        slow = [server.connect() for _ in range(30)]
        for number, connection in enumerate(slow):
            connection.sendall(whole[: [0, 10, len(whole) - 5][number % 3]])
        assert httpx.post(f"{server.url}/v1/recommendations", json={"messages": "x"}).status_code == 200
        answers = [read_all(connection) for connection in slow]
        assert [answer.split(b"\r\n")[0] for answer in answers] == [b"", b"", b"HTTP/1.1 408 Request Timeout"] * 10
        assert json.loads(answers[2].split(b"\r\n\r\n")[1])["error"]["code"] == "request_timeout"
        dripping = server.connect()
        dripping.sendall(post("/v1/recommendations", {"messages": "x"}, close=False))
        assert dripping.recv(65536).startswith(b"HTTP/1.1 200")
        dripping.sendall(b"POST /v1")  # and no more of the next request
        assert read_all(dripping) == b""


def test_connections_are_bounded(served):
    with running(served, connections=3) as server:
        held = [server.connect() for _ in range(3)]
        server.wait(lambda: read_all(server.connect()) == b"")
        for connection in held:
            connection.close()
        server.wait(lambda: httpx.get(f"{server.url}/health").status_code == 200)


def test_a_client_that_takes_nothing_is_dropped(served):
    with running(served, write_timeout=0.5) as server:
        taking = socket.socket()
        taking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        taking.connect(("127.0.0.1", server.port))
        for _ in range(8):  # a file of 1.5 MB, several times
            taking.sendall(b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        taking.settimeout(10)
        assert len(read_all(taking)) < 8 * 1_400_000


def test_broken_http_is_refused(served):
    with running(served) as server:
        for request in (
            b"nonsense\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        ):
            connection = server.connect()
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            assert not read_all(connection).startswith((b"HTTP/1.1 2", b"HTTP/1.1 5")), request[:60]
        endless = server.connect()
        endless.sendall(b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):  # closed while it is written to
            endless.sendall((b"10000\r\n" + b"a" * 0x10000 + b"\r\n") * 100)
        assert read_all(endless)[:12] in (b"", b"HTTP/1.1 413")
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_the_end_answers_what_is_under_way_and_refuses_the_rest(folder):
    with running(Served.of("policy", open_session(folder)), drain=120) as server:
        url = f"{server.url}/v1/recommendations"
        first = in_thread(lambda: httpx.post(url, json=LONG, timeout=60))
        second = in_thread(lambda: httpx.post(url, json={**LONG, "stream": True}, timeout=60))
        server.wait(lambda: server.service.under_way == 2)
        kept = httpx.Client()
        assert kept.get(f"{server.url}/health").status_code == 200
        server.service.stop()
        refused = [httpx.post(url, json={"messages": "x"}), kept.post(url, json={"messages": "x"})]
        assert [answer.status_code for answer in refused] == [503, 503]
        assert refused[0].headers["Retry-After"]
        assert httpx.get(f"{server.url}/health").json()["status"] == "stopping"
    assert len(first().json()["items"]) == 60
    assert second().text.count("event: item") == 60
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_the_end_does_not_wait_for_ever(folder):
    with running(Served.of("policy", open_session(folder)), drain=0.2) as server:
        url = f"{server.url}/v1/recommendations"
        whole, stream = (in_thread(lambda s=s: httpx.post(url, json={**LONG, "stream": s})) for s in (False, True))
        server.wait(lambda: server.service.under_way == 2)
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert (whole().status_code, whole().json()["error"]["code"]) == (503, "stopping")
    assert stream().text.rsplit("event: ")[-1].startswith("error")
    assert "2 cancelled" in server.service.farewell


def test_a_port_in_use_and_a_host_of_another_machine():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="another program listens"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match=r"host=192\.0\.2\.1"):
        listen("192.0.2.1", 8000)
    with pytest.raises(UserError, match=r"host=nowhere\.invalid"):
        listen("nowhere.invalid", 8000)
    with listen("::1", 0) as six:
        assert six.family is socket.AF_INET6
