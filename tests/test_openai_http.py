"""The client for servers that speak the OpenAI API: keys, refusals, streams, and what is no such server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from leveret.errors import RequestError
from leveret.openai_http import Refusal, answer_of, events, json_of


class Script(BaseHTTPRequestHandler):
    """Answers everything by the class's status and text; notes the headers it was asked with."""

    status: ClassVar[int] = 200
    text: ClassVar[str] = "{}"
    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        type(self).keys.append(self.headers["Authorization"])
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Script, "keys", [])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_the_environments_key_is_sent_and_a_given_one_goes_before_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_of(url).close()
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    answer_of(url, {}).close()
    answer_of(url, api_key="given").close()
    assert Script.keys == [None, "Bearer theirs", "Bearer given"]


def test_a_proxy_is_not_asked_for_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert json_of(url) == {}
    with pytest.raises(RequestError, match=r"no answer from http://example\.invalid/v1"):
        json_of("http://example.invalid/v1")


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (400, '{"error": {"message": "no such field"}}', "answered 400: no such field"),
        (401, '{"message": "who are you?"}', r"answered 401: who are you\?"),
        (500, "<html>", "answered 500: <html>"),
        (500, "[1]", r"answered 500: \[1\]"),
    ],
)
def test_a_refusal_has_the_servers_words_and_status(
    url: str, monkeypatch: pytest.MonkeyPatch, status: int, text: str, words: str
) -> None:
    monkeypatch.setattr(Script, "status", status)
    monkeypatch.setattr(Script, "text", text)
    with pytest.raises(Refusal, match=words) as caught:
        json_of(url, {})
    assert caught.value.status == status
    assert ("OPENAI_API_KEY" in str(caught.value.hint)) == (status == 401)


@pytest.mark.parametrize(("text", "words"), [("<html>", "not answer in JSON"), ("[1]", r"with an object, but \[1\]")])
def test_what_answers_in_another_way_is_named(url: str, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setattr(Script, "text", text)
    with pytest.raises(RequestError, match=words):
        json_of(url)


def test_a_stream_is_read_up_to_its_end_past_what_is_no_data(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [": comment", "event: piece", 'data: {"a": "你"}', 'data:{"a": 2}', "data: [DONE]", "data: {never read"]
    monkeypatch.setattr(Script, "text", "\r\n\r\n".join(lines))
    with answer_of(url, {}) as response:
        assert list(events(response)) == [{"a": "你"}, {"a": 2}]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['data: {"a": 1}'], "closed the connection before"),
        (['data: {"a": 1}', "data: " + json.dumps({"error": {"message": "out of memory"}})], "failed: out of memory"),
        (['data: {"a": 1}', "data: {half"], "broke off"),
    ],
)
def test_a_stream_that_does_not_end_well_says_how_after_what_it_brought(
    url: str, monkeypatch: pytest.MonkeyPatch, lines: list[str], words: str
) -> None:
    monkeypatch.setattr(Script, "text", "\n\n".join(lines) + "\n\n")
    seen = []
    with pytest.raises(RequestError, match=words), answer_of(url, {}) as response:
        for event in events(response):
            seen.append(event)
    assert seen == [{"a": 1}]


def test_nobody_at_the_url_is_an_error_with_a_way_out() -> None:
    with pytest.raises(RequestError, match=r"no answer from http://127\.0\.0\.1:9/v1") as caught:
        answer_of("http://127.0.0.1:9/v1")
    assert "/v1" in str(caught.value.hint)
