"""Who may ask, from where, how much and how long; and what a server says of itself."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from leveret.engine.text import TextModel
from leveret.serve.config import ServeConfig
from leveret.serve.running import running
from leveret.version import VERSION

from .test_errors import CHAT, MESSAGES, send

BODY = json.dumps({"messages": MESSAGES, "max_tokens": 2}).encode()


def headers_of(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}


def metrics(url: str) -> dict[str, float]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_any_of_several_keys_opens(model: TextModel) -> None:
    with running(model, ServeConfig(model="x", port=0, api_key="first, second")) as url:
        for key, status in (("first", 200), ("second", 200), ("first, second", 401), ("", 401), ("third", 401)):
            assert send(url, "POST", CHAT, BODY, Authorization=f"Bearer {key}")[0] == status
        for given, status in (("bearer first", 200), ("BEARER  first", 200), ("first", 401), ("Basic first", 401)):
            assert send(url, "POST", CHAT, BODY, Authorization=given)[0] == status
        assert send(url, "POST", CHAT, BODY)[0] == 401
        assert headers_of(url, "POST", CHAT, BODY)[1]["www-authenticate"] == "Bearer"
        assert send(url, "GET", "/version")[1] == {"version": VERSION}


def test_a_key_may_have_any_letters(model: TextModel) -> None:
    with running(model, ServeConfig(model="x", port=0, api_key="芝麻开门")) as url:
        for key, status in (("芝麻开门", 200), ("芝麻关门", 401)):
            given = f"Bearer {key}".encode().decode("latin-1")  # the bytes that curl sends
            assert send(url, "POST", CHAT, BODY, Authorization=given)[0] == status


def test_a_wrong_method_is_told_the_right_ones(url: str) -> None:
    status, headers = headers_of(url, "PUT", CHAT, BODY)
    assert status == 405 and headers["allow"] == "POST"
    assert set(headers_of(url, "DELETE", "/health")[1]["allow"].split(", ")) == {"GET", "HEAD"}


def test_pages_elsewhere_cost_us_nothing_unless_they_are_on_the_list(model: TextModel, url: str) -> None:
    before = metrics(url)["leveret_prompt_tokens_total"]
    for origin in ("https://evil.example", "null"):
        status, content = send(url, "POST", CHAT, BODY, Origin=origin)
        assert status == 403 and content["error"]["code"] == "forbidden"
    assert metrics(url)["leveret_prompt_tokens_total"] == before
    assert send(url, "POST", CHAT, BODY, Origin=url)[0] == 200  # a page of our own
    with running(model, ServeConfig(model="x", port=0, allow_origins=["https://chat.example"])) as open_url:
        asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization,content-type"
        status, headers = headers_of(open_url, "OPTIONS", CHAT, **asked)
        assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
        status, headers = headers_of(open_url, "POST", CHAT, BODY, Origin="https://chat.example")
        assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
        status, headers = headers_of(open_url, "POST", CHAT, BODY, Origin="https://evil.example")
        assert status == 403 and "access-control-allow-origin" not in headers


def test_a_name_that_was_let_point_here_is_refused(model: TextModel, url: str) -> None:
    port = urlsplit(url).port
    for host in (f"evil.example:{port}", "evil.example", "10.0.0.5", "127.0.0.1.evil.example", "[::1", ""):
        for method, path, body in (("POST", CHAT, BODY), ("GET", "/v1/models", b""), ("GET", "/gradio", b"")):
            for sent in ({"Origin": f"http://{host}"}, {"Accept-Language": "en"}):  # a page's own GET has no origin
                status, content = send(url, method, path, body, Host=host, **sent)
                assert status == 403 and content["error"]["code"] == "forbidden", host
        assert send(url, "POST", CHAT, BODY, Host=host)[0] == 200  # no browser
    for host in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", "[::1]:8000", "127.0.1.1"):
        assert send(url, "POST", CHAT, BODY, Host=host, Origin=f"http://{host}")[0] == 200
    for config in ({"allow_origins": ["https://chat.example"]}, {"allow_origins": ["*"]}, {"api_key": "key"}):
        with running(model, ServeConfig(model="x", port=0, page=False, **config)) as open_url:
            headers = {"Host": "chat.example", "Authorization": "Bearer key", "Accept-Language": "zh"}
            assert send(open_url, "POST", CHAT, BODY, **headers)[0] == 200
    with running(model, ServeConfig(model="x", port=0, page=False, host="0.0.0.0")) as open_url:
        assert (
            send(open_url.replace("0.0.0.0", "127.0.0.1"), "POST", CHAT, BODY, Host="box.lan", Origin="http://box.lan")[
                0
            ]
            == 200
        )


def test_a_head_is_that_of_the_answer_to_get(url: str) -> None:
    for path in ("/health", "/version", "/metrics", "/v1/models", "/v1/models/phone"):
        status, headers = headers_of(url, "HEAD", path)
        assert status == 200 and headers["content-type"] == headers_of(url, "GET", path)[1]["content-type"]
    assert headers_of(url, "HEAD", CHAT)[0] == 405


def test_answers_longer_than_the_server_gives_are_refused_with_the_number(model: TextModel) -> None:
    with running(model, ServeConfig(model="x", port=0, max_answer_tokens=8)) as url:
        assert send(url, "POST", CHAT, json.dumps({"messages": MESSAGES, "max_tokens": 8}).encode())[0] == 200
        for name in ("max_tokens", "max_completion_tokens"):
            status, content = send(url, "POST", CHAT, json.dumps({"messages": MESSAGES, name: 9}).encode())
            assert status == 400 and content["error"]["param"] == name and "8" in content["error"]["message"]
        left_out = json.dumps({"messages": MESSAGES, "temperature": 0}).encode()
        status, content = send(url, "POST", CHAT, left_out)
        assert status == 200 and content["usage"]["completion_tokens"] <= 8


def test_a_body_that_does_not_come_is_given_up(model: TextModel) -> None:
    with running(model, ServeConfig(model="x", port=0, max_body_seconds=0.2)) as url:
        host, _, port = urlsplit(url).netloc.partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
            assert b" 408 " in connection.recv(1000).splitlines()[0]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_ends_with_an_error(
    model: TextModel, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    hidden = model.model.hidden

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)
        return hidden(*args, **kwargs)

    monkeypatch.setattr(model.model, "hidden", slow)
    body = {"prompt": "Set a", "max_tokens": 1500, "ignore_eos": True, "stream": stream}
    with running(model, ServeConfig(model="x", port=0, max_answer_seconds=0.3)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        assert response.status == (200 if stream else 503)
        text = response.read().decode()
        connection.close()
        error = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["error"]
        assert error["code"] == "timeout" and "0.3 s" in error["message"]
        assert metrics(url)['leveret_engine_used_tokens{model="phone"}'] == 0


def test_other_doors_of_the_api_are_refused_with_a_reason(url: str) -> None:
    status, content = send(url, "POST", "/v1/embeddings", json.dumps({"input": "x", "model": "phone"}).encode())
    assert status == 400 and content["error"]["code"] == "unsupported_endpoint"
    assert "no embeddings" in content["error"]["message"]
    status, content = send(url, "POST", "/v1/completions", json.dumps({"prompt": "x", "suffix": "y"}).encode())
    assert status == 400 and content["error"]["param"] == "suffix"


def test_the_metrics_count_what_was_answered(url: str) -> None:
    body = json.dumps({"prompt": "Set a", "max_tokens": 3, "ignore_eos": True, "n": 2}).encode()
    before = metrics(url)
    _, content = send(url, "POST", "/v1/completions", body)
    assert send(url, "POST", "/v1/completions", b"{")[0] == 400
    assert send(url, "GET", "/nowhere")[0] == 404
    after = metrics(url)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    usage = content["usage"]
    assert more("leveret_prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert more("leveret_generated_tokens_total") == usage["completion_tokens"] == 6
    assert more('leveret_answers_total{model="phone",reason="length"}') == 2
    assert more('leveret_http_requests_total{endpoint="/v1/completions",status="200"}') == 1
    assert more('leveret_http_requests_total{endpoint="/v1/completions",status="400"}') == 1
    assert more('leveret_http_requests_total{endpoint="other",status="404"}') == 1
    assert more("leveret_first_token_seconds_count") == 2 and more("leveret_next_token_seconds_count") == 4
    assert after["leveret_answers_running"] == after["leveret_answers_waiting"] == 0
    assert more('leveret_engine_finished_requests_total{model="phone"}') == 2


def test_all_numbers_of_a_model_bear_the_name_that_it_is_served_by(model: TextModel) -> None:
    with running(model, ServeConfig(model="x", port=0, page=False, served_model_name="served")) as url:
        assert send(url, "POST", CHAT, BODY)[0] == 200
        names = {name for name in metrics(url) if "model=" in name}
        assert names and all('model="served"' in name for name in names)
        assert any(name.startswith("leveret_answers_total") for name in names)
