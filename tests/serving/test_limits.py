"""What a server bears: large bodies, slow and vanishing clients, full queues, dead engines, wrong keys and names."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest

from nextile.serving import flow, run
from nextile.serving.guard import HEADERS

JSON = {"content-type": "application/json"}
LONG = json.dumps({"prompt": "a", "max_tokens": 100_000, "min_tokens": 100_000, "stream": True}).encode()


def eventually(true: Callable[[], Any], seconds: float = 5.0) -> bool:
    """Whether it becomes true in time."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def streaming(running: Any, stack: ExitStack, body: bytes = LONG) -> Any:
    """A stream of which the first event is there; the stack closes it."""
    connection = stack.enter_context(closing(running.connection()))
    connection.request("POST", "/v1/completions", body, JSON)
    response = stack.enter_context(closing(connection.getresponse()))
    assert response.status == 200, response.read()
    assert response.readline().startswith(b"data: ")
    return response


# --- bodies -----------------------------------------------------------------------------------------------------------


def raw(running: Any, head: str, parts: Any = (), seconds: float = 30.0) -> bytes:
    """What is answered to bytes; the parts are sent as long as somebody reads them."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=seconds) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:  # the server has hung up
            pass
        while part := connection.recv(1 << 16):
            answer += part
            if b"\r\n\r\n" in answer and answer.rstrip().endswith(b"}"):
                break
        return answer


HEAD = "POST /v1/completions HTTP/1.1\nhost: localhost\ncontent-type: application/json\n"


def test_a_body_of_100_megabytes_is_refused_by_its_length(lm):
    head = f"{HEAD}content-length: {100 << 20}\n\n"
    answer = raw(lm, head)  # not a byte of it is sent
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"8,388,608 bytes" in answer


def test_a_body_without_a_length_is_counted_as_it_comes(lm):
    sent = []

    def chunks() -> Any:
        for _ in range(100):
            sent.append(1)
            yield b"100000\r\n" + b" " * (1 << 20) + b"\r\n"

    answer = raw(lm, f"{HEAD}transfer-encoding: chunked\n\n", chunks())
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_large_body_does_not_stay_in_memory(lm):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = f"{HEAD}transfer-encoding: chunked\n\n"
    for _ in range(3):
        assert raw(lm, head, (b"100000\r\n" + b" " * (1 << 20) + b"\r\n" for _ in range(100))).startswith(
            b"HTTP/1.1 413"
        )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KB


def test_too_many_bodies_at_once_are_refused(lm, serving):
    with serving(lm.model, most_bodies=2000) as running:
        answer = running.post("/v1/completions", prompt="a" * 3000)
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "busy", "1")
        assert running.post("/v1/completions", prompt="a", max_tokens=1).status == 200  # it was given back


def test_a_body_that_does_not_come_is_not_waited_for(lm, serving):
    with serving(lm.model, read_seconds=0.2) as running:
        answer = raw(running, f"{HEAD}content-length: 100\n\n", [b"{"])
        assert answer.startswith(b"HTTP/1.1 408")


def test_headers_that_do_not_come_are_not_waited_for(lm, monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", lm.port), timeout=5) as connection:
        assert connection.recv(100) == b""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", lm.port), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.recv(100) == b""
    assert time.monotonic() - began < 3


def drip(connection: socket.socket, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        connection.sendall(b" ")
        time.sleep(0.02)


def test_a_body_that_was_refused_is_not_listened_to_for_ever(lm, monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", lm.port), timeout=5) as connection:
        connection.sendall(f"{HEAD}content-length: {100 << 20}\n\n".replace("\n", "\r\n").encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")
        with pytest.raises(OSError, match=r"reset|pipe|abort"):
            drip(connection, seconds=5)


def test_a_connection_that_is_used_stays(lm, monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.3)
    with closing(lm.connection()) as connection:
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            time.sleep(0.2)


@pytest.mark.parametrize(
    "text",
    ["nonsense\n\n", "GET / HTTP/1.1\n\n", f"GET / HTTP/1.1\nhost: localhost\na: {'b' * 300_000}", "\x16\x03\x01\n\n"],
)
def test_what_is_no_http_is_refused_in_the_same_shape(lm, text):
    answer = raw(lm, text)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_headers_that_are_too_long_are_431(lm):
    answer = lm.get("/health", other="b" * 40_000)
    assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


def test_a_body_of_another_type_is_415(lm):
    answer = lm.ask("POST", "/v1/completions", b"prompt=a", content_type="text/plain")
    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")
    assert "application/json" in answer.error["message"]


# --- clients that leave -----------------------------------------------------------------------------------------------


def leave(running: Any, count: int) -> None:
    pages = running.engine.statistics().pages_used
    with ExitStack() as stack:
        for _ in range(count):
            streaming(running, stack)
        assert running.engine.statistics().running >= min(count, 8)
    now = running.engine.statistics
    assert eventually(lambda: now().running == now().waiting == 0, seconds=1.0 + 0.05 * count)
    assert now().pages_used <= pages + 8  # what prefixes may keep


def test_a_client_that_leaves_frees_its_place(lm):
    leave(lm, 4)


@pytest.mark.slow
def test_a_hundred_clients_that_leave_free_their_places(lm, serving):
    with serving(lm.model, rows=128, queue=10) as running:
        for _ in range(2):
            leave(running, 100)


def test_a_client_that_leaves_before_its_answer_frees_its_place(lm):
    with closing(lm.connection()) as connection:
        connection.request("POST", "/v1/completions", LONG.replace(b"true", b"false"), JSON)
        assert eventually(lambda: lm.engine.statistics().running == 1)
    assert eventually(lambda: lm.engine.statistics().running == 0, 1.0)


@pytest.mark.slow  # the system takes megabytes for a client that does not
@pytest.mark.parametrize(("most", "seconds"), [(50, 1000.0), (10**9, 0.5)])
def test_a_client_that_does_not_read_is_given_up(lm, serving, monkeypatch, most, seconds):
    body = json.dumps({**json.loads(LONG), "n": 8, "logprobs": 20}).encode()
    monkeypatch.setattr(flow, "MOST_UNREAD", most)
    with serving(lm.model, write_seconds=seconds) as running, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", running.port))
        head = f"{HEAD}content-length: {len(body)}\n\n".replace("\n", "\r\n").encode()
        connection.sendall(head + body)
        assert eventually(lambda: running.engine.statistics().running == 8)
        assert eventually(lambda: running.engine.statistics().running == 0, 120.0)
        assert running.get("/health").status == 200


# --- a full queue -----------------------------------------------------------------------------------------------------


def test_a_full_queue_answers_429_at_once(lm, serving):
    with serving(lm.model, rows=1, queue=2) as running, ExitStack() as stack:
        streaming(running, stack)
        for _ in range(2):
            connection = stack.enter_context(closing(running.connection()))
            connection.request("POST", "/v1/completions", LONG, JSON)
        assert eventually(lambda: running.engine.statistics().waiting == 2)
        seconds = []
        for _ in range(5):
            began = time.monotonic()
            answer = running.post("/v1/completions", prompt="a")
            seconds.append(time.monotonic() - began)
            assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
            assert answer.headers["retry-after"] == "1"
        assert min(seconds) < 0.05
        assert running.post("/v1/completions", prompt="a", stream=True).status == 429


def test_a_request_for_more_texts_than_there_is_room_for_leaves_nothing_behind(lm, serving):
    with serving(lm.model, rows=1, queue=2) as running, ExitStack() as stack:
        stack.enter_context(closing(connection := running.connection()))
        connection.request("POST", "/v1/completions", LONG, JSON)
        assert eventually(lambda: running.engine.statistics().running == 1)
        assert running.post("/v1/completions", prompt="a", n=3).status == 429
        connection.close()
        assert eventually(lambda: running.engine.statistics().waiting == running.engine.statistics().running == 0)
        assert running.post("/v1/completions", prompt="a", max_tokens=1).status == 200


def test_more_texts_than_there_is_ever_room_for_are_an_error_that_names_the_limit(lm, painter, serving):
    with serving(lm.model, rows=1, queue=2) as running:
        assert running.post("/v1/completions", prompt="a", n=3, max_tokens=1).status == 200
        for body in ({"n": 4}, {"prompt": ["a", "b"], "n": 2}, {"n": 4, "stream": True}, {"best_of": 4}):
            answer = running.post("/v1/completions", **{"prompt": "a", **body})
            assert answer.status == 400
            assert "4 texts are asked for, and this server holds 3 at a time" in answer.error["message"]
    with serving(painter.model, rows=1, queue=2) as running:
        assert running.post("/v1/paint", n=4).status == 400


def test_too_many_requests_at_a_time_are_refused(lm, serving):
    with serving(lm.model, most_requests=2) as running, ExitStack() as stack:
        streaming(running, stack)
        streaming(running, stack)
        assert running.post("/v1/completions", prompt="a").status == 429
        assert running.get("/health").status == 200


# --- the engine -------------------------------------------------------------------------------------------------------


def test_a_dead_engine_makes_health_503_within_two_seconds(lm, serving):
    with serving(lm.model) as running:
        running.engine.close(0)
        began = time.monotonic()
        answer = running.get("/health")
        assert (answer.status, answer.error["code"]) == (503, "engine_dead")
        assert time.monotonic() - began < 2
        assert running.post("/v1/completions", prompt="a").status == 503


def test_an_engine_that_hangs_makes_health_503_within_two_seconds(lm, serving):
    never = threading.Event()
    with serving(lm.model, drain=0.0) as running:
        assert running.get("/health").status == 200
        running.engine.run(iter(lambda: never.wait(20) or 1, 1), lambda told: None)
        assert eventually(lambda: running.get("/health").status == 503, 2.5)
        never.set()


def test_an_engine_that_fails_in_midstream_says_so_in_the_stream(lm, serving, monkeypatch):
    with serving(lm.model) as running, ExitStack() as stack:
        response = streaming(running, stack)
        running.engine.close(0)
        rest = response.read().decode()
        last = rest.strip().rpartition("\n\n")[2] or rest
        assert json.loads(last.strip().removeprefix("data: "))["error"]["type"] == "server_error"


def test_work_that_fails_is_a_500_that_tells_nothing(lm, serving, monkeypatch, caplog):
    from nextile.serving import jobs

    def broken(*_: Any) -> Any:
        raise ValueError("a secret of the house")
        yield

    monkeypatch.setattr(jobs, "embeddings", broken)
    answer = lm.post("/v1/embeddings", input="a")
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "secret" not in answer.error["message"]
    assert "a secret of the house" in caplog.text  # the log has it
    caplog.clear()


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(lm, serving):
    with serving(lm.model, key="s3cret") as running:
        yield running


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


PATHS = ["/", "/page.js", "/v1/models", "/metrics", "/openapi.json", "/v1/models/tiny", "/nowhere"]


@pytest.mark.parametrize("path", PATHS)
def test_every_route_asks_for_the_key(locked, path):
    assert locked.get(path).status == 401
    assert locked.get(path).error["code"] == "invalid_api_key"
    wanted = 404 if path == "/nowhere" else 200
    assert locked.get(path, authorization="Bearer s3cret").status == wanted
    assert locked.get(path, authorization=basic("s3cret")).status == wanted


def test_every_route_that_is_posted_to_asks_for_the_key(locked):
    for path in locked.get("/openapi.json", authorization="Bearer s3cret").json["paths"]:
        if path.startswith("/v1/") and "{" not in path:
            assert locked.post(path, prompt="a").status == 401


@pytest.mark.parametrize(
    "given",
    ["", "s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Bearer S3CRET", "Basic s3cret", "Basic !!",
     basic(""), basic("s3cre"), "Basic " + base64.b64encode(b"s3cret").decode(), "Digest s3cret", "Bearer \xe9"],
)  # fmt: skip
def test_another_key_is_refused(locked, given):
    assert locked.get("/v1/models", authorization=given).status == 401


def test_a_browser_is_asked_for_the_key_and_a_program_is_told(locked):
    assert locked.get("/").headers["www-authenticate"].startswith("Basic ")
    assert locked.get("/v1/models").headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key(locked):
    assert locked.get("/health").status == 200


# --- names and headers ------------------------------------------------------------------------------------------------


def test_another_name_is_refused_on_loopback(lm, serving):
    with serving(lm.model, hosts=run.allowed_hosts("127.0.0.1")) as running:
        for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST", f"localhost:{running.port}"):
            assert running.get("/health", host=host).status == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:80", "[::2]"):
            assert running.get("/v1/models", host=host).status == 403
            assert running.get("/health", host=host).status == 403


def test_names_are_free_beyond_loopback():
    assert run.allowed_hosts("0.0.0.0") is None
    assert run.allowed_hosts("localhost") == (*run.LOOPBACK, "localhost")
    assert [run.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "8.8.8.8")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/page.js", "/v1/models", "/health", "/metrics", "/nowhere"])
def test_every_answer_carries_what_keeps_browsers_safe(lm, path):
    answer = lm.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "server" not in answer.headers


def test_other_origins_are_given_nothing(lm):
    asked = {"origin": "https://evil.example", "access_control_request_method": "POST"}
    answer = lm.ask("OPTIONS", "/v1/completions", **asked)
    assert answer.status == 405
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert not any(name.startswith("access-control") for name in lm.get("/v1/models", **asked).headers)


def test_text_of_models_is_never_html(serving, made):
    with serving(made("octets"), name="<script>alert(1)</script>") as running:
        for path in ("/v1/models", "/nowhere/<b>", "/v1/models/<b>"):
            answer = running.get(path.replace("<", "%3C"))
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-content-type-options"] == "nosniff"
        stream = running.post("/v1/completions", prompt="<b>\n\ndata: x\n\n", echo=True, stream=True, max_tokens=3)
        assert stream.events[0]["choices"][0]["text"] == "<b>\n\ndata: x\n\n"


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_server_that_ends_finishes_what_runs_and_refuses_what_is_new(lm, serving):
    body = json.dumps({"prompt": "a", "max_tokens": 200, "min_tokens": 200, "stream": True}).encode()
    with serving(lm.model, drain=30.0) as running, ExitStack() as stack:
        response = streaming(running, stack, body)
        running.loop.call_soon_threadsafe(running.server.end)
        assert eventually(lambda: running.app.life.closing)
        answer = running.post("/v1/completions", prompt="a")
        assert (answer.status, answer.error["code"]) == (503, "stopping")
        assert int(answer.headers["retry-after"]) > 0
        rest = response.read().decode()
        assert rest.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in rest


def test_what_runs_too_long_is_ended_with_a_word(lm, serving):
    with serving(lm.model, drain=0.3) as running, ExitStack() as stack:
        response = streaming(running, stack)
        running.loop.call_soon_threadsafe(running.server.end)
        rest = response.read().decode()
        assert json.loads(rest.strip().rpartition("\n\n")[2].removeprefix("data: "))["error"]["code"] == "stopping"
