"""A real server on loopback: what it answers, how it refuses, and how it ends."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest

from higr_hf.serving import SlateEngine
from higr_hf.serving.http import MAX_BODY, create_app, listen, serve
from tests.serving.conftest import same_slates

pytest.importorskip("uvicorn")


class Client:
    """One connection after another to a server."""

    def __init__(self, address: str) -> None:
        self.where = urllib.parse.urlsplit(address)

    def ask(self, method, path, body=None, raw=None):
        """Status, headers and JSON of an answer."""
        connection = http.client.HTTPConnection(self.where.hostname, self.where.port, timeout=60)
        connection.request(method, path, body=json.dumps(body) if raw is None else raw)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, json.loads(content) if content else None


class Server(threading.Thread):
    """`serve` in a thread; uvicorn leaves signals alone there, so it is ended by its own flag."""

    def __init__(self, engine, monkeypatch, timeout=30.0):
        super().__init__(daemon=True)
        import uvicorn

        started, made = threading.Event(), []
        plain = uvicorn.Server

        def remembered(config):
            made.append(plain(config))
            return made[-1]

        monkeypatch.setattr(uvicorn, "Server", remembered)

        def told(address):
            self.client = Client(address)
            started.set()

        self._serve = lambda: serve(create_app(engine, timeout), port=0, started=told)
        self._made = made
        self.start()
        assert started.wait(60)

    def run(self):
        self._serve()

    def end(self):
        while not self._made:
            time.sleep(0.01)
        self._made[0].should_exit = True
        self.join(60)
        assert not self.is_alive()


@pytest.fixture(scope="module")
def served(small):
    model, tokenizer, pipeline = small
    engine = SlateEngine(model, tokenizer, max_wait_ms=1)
    with pytest.MonkeyPatch.context() as patch:
        server = Server(engine, patch)
        yield server.client, pipeline
        server.end()
    assert engine.closed


def test_an_answer_waits_for_no_acknowledgement():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_slates_are_the_pipeline_s(served):
    client, pipeline = served
    histories = [[f"i{(3 * number + item) % 24}" for item in range(number)] for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda items: client.ask("POST", "/recommend", {"history": items}), histories))
    for history, (status, headers, content) in zip(histories, answers, strict=True):
        assert status == 200 and headers["content-type"] == "application/json"
        same_slates(content["slate"], pipeline(history))
        assert set(content["slate"][0]) == {"slot", "item_id", "title", "score", "alternates"}


def test_users_are_told_extended_and_forgotten(served):
    client, pipeline = served
    user = "/users/" + urllib.parse.quote("ann & co", safe="")
    rated = {"history": ["i1", "Film 2"], "feedback": [5.0, None]}
    assert client.ask("PUT", user, rated)[::2] == (200, {"events": 2})
    events = [{"item": "i3", "feedback": 1.0}]
    assert client.ask("POST", f"{user}/events", {"events": events})[::2] == (200, {"events": 3})
    status, _, content = client.ask("POST", "/recommend", {"user": "ann & co", "events": ["i4"], "slate_size": 2})
    told = {"history": ["i1", "i2", "i3", "i4"], "feedback": [5.0, None, 1.0, None]}
    assert status == 200
    same_slates(content["slate"], pipeline(told, slate_size=2))
    assert client.ask("DELETE", user)[0] == 204
    for status, _, content in (client.ask("DELETE", user), client.ask("POST", "/recommend", {"user": "ann & co"})):
        assert status == 404 and "Nothing is known of user 'ann & co'" in content["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/recommend", {"history": ["nope"]}, 400, "no item has the id or title 'nope'"),
        ("POST", "/recommend", {"history": 5}, 400, "history must be a list"),
        ("POST", "/recommend", {"history": [], "slate_size": "5"}, 400, "slate_size must be a whole number"),
        ("POST", "/recommend", {"history": [], "allowed": ["i1"]}, 400, "only 1 legal items for a slate of 4"),
        ("POST", "/recommend", {"history": [], "self": 1}, 400, "may not have ['self']"),
        ("POST", "/recommend", [], 400, "must be a JSON object"),
        ("PUT", "/users/ann", {}, 400, "must have 'history'"),
        ("POST", "/users/ann/events", {"events": [5]}, 404, "Nothing is known"),
        ("GET", "/recommend", None, 405, "Method Not Allowed"),
        ("GET", "/nowhere", None, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_says_why(served, method, path, body, status, message):
    found, _, content = served[0].ask(method, path, body)
    assert found == status and message in content["error"]


def test_bodies_that_are_no_json_or_too_large(served):
    client, _ = served
    for raw in ("{", "\udcff".encode("utf-8", "surrogateescape"), ""):
        status, _, content = client.ask("POST", "/recommend", raw=raw)
        assert status == 400 and "no valid JSON" in content["error"]
    status, _, content = client.ask("POST", "/recommend", raw=b" " * (MAX_BODY + 1))
    assert status == 413 and str(MAX_BODY) in content["error"]


def test_it_says_how_it_is(served):
    client, _ = served
    assert client.ask("GET", "/health")[::2] == (200, {"status": "ok"})
    assert client.ask("POST", "/recommend", {"history": ["i1"]})[0] == 200
    _, _, stats = client.ask("GET", "/stats")
    assert stats["answered"] > 0 and stats["waiting"] == 0


def test_overload_lateness_failure_and_a_shutdown_that_answers(small, monkeypatch):
    model, tokenizer, _ = small
    opened, entered = threading.Event(), threading.Semaphore(0)
    generate = model.generate

    def slow(*arguments, **keywords):
        entered.release()
        assert opened.wait(60)
        return generate(*arguments, **keywords)

    monkeypatch.setattr(model, "generate", slow)
    engine = SlateEngine(model, tokenizer, max_wait_ms=0, max_queue=1)
    server = Server(engine, monkeypatch, timeout=20.0)
    with ThreadPoolExecutor(4) as pool:

        def ask():
            return server.client.ask("POST", "/recommend", {"history": ["i1"]})

        first = pool.submit(ask)
        assert entered.acquire(timeout=60)
        second = pool.submit(ask)
        while not engine.stats()["waiting"]:
            time.sleep(0.01)
        status, headers, content = ask()
        assert status == 503 and int(headers["Retry-After"]) >= 1 and "1 requests are waiting" in content["error"]
        ending = pool.submit(server.end)
        time.sleep(0.1)
        opened.set()
        assert [future.result(60)[0] for future in (first, second)] == [200, 200]
        ending.result(60)
    assert engine.closed


def test_a_fault_of_the_server_is_not_told_in_detail(small, monkeypatch):
    model, tokenizer, _ = small
    engine = SlateEngine(model, tokenizer, max_wait_ms=0)
    server = Server(engine, monkeypatch, timeout=1.0)
    opened = threading.Event()

    def broken(*arguments, **keywords):
        raise RuntimeError("secret path")

    monkeypatch.setattr(model, "generate", broken)
    assert server.client.ask("POST", "/recommend", {"history": []})[::2] == (
        500,
        {"error": "The server failed on this request."},
    )
    monkeypatch.setattr(model, "generate", lambda *arguments, **keywords: opened.wait(60) and broken())
    status, _, content = server.client.ask("POST", "/recommend", {"history": []})
    assert (status, content) == (504, {"error": "The slate was not ready in time."})
    opened.set()
    server.end()
