"""The page's door and its place in the application, over HTTP, without a browser."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from leveret.engine.text import TextModel
from leveret.errors import MissingExtra
from leveret.serve.config import ServeConfig
from leveret.serve.running import running
from leveret.serve.web import pages
from leveret.serve.web.door import COOKIE, local_path, ticket_for
from leveret.serve.web.language import preferred

KEY = "a key 密钥"


@pytest.fixture
def no_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, *, extra: str, purpose: str) -> ModuleType:
        raise MissingExtra(f"{purpose} needs the package '{module}'", hint=f'pip install "leveret[{extra}]"')

    monkeypatch.setattr(pages, "require", missing)


@pytest.fixture
def browser(model: TextModel, no_gradio: None) -> Iterator[httpx.Client]:
    """A client of a server that has no page behind its door, which is quick."""
    with running(model, ServeConfig(model="phone", port=0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def locked(model: TextModel, no_gradio: None) -> Iterator[httpx.Client]:
    config = ServeConfig(model="phone", port=0, api_key=f"another key, {KEY}")
    with running(model, config) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_without_gradio_the_page_says_how_to_get_it_and_the_api_works(browser: httpx.Client) -> None:
    answer = browser.get("/gradio/")
    assert answer.status_code == 501 and 'pip install "leveret[web]"' in answer.text
    assert browser.get("/gradio").headers["location"] == "/gradio/"
    assert browser.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2}).status_code == 200


def test_no_page_when_none_is_wanted(model: TextModel) -> None:
    with running(model, ServeConfig(model="phone", port=0, page=False)) as url:
        assert httpx.get(f"{url}/gradio/", timeout=60).status_code == 404
        assert httpx.post(f"{url}/login", data={"key": "x"}, timeout=60).status_code == 404


def test_the_api_does_not_import_gradio() -> None:
    code = "import sys; import leveret.serve.app; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_another_site_asks_for_is_refused(browser: httpx.Client) -> None:
    host = browser.base_url.netloc.decode()
    for origin, status in ((f"http://{host}", 501), ("http://evil.example", 403), ("null", 403)):
        assert browser.get("/gradio/config", headers={"Origin": origin}).status_code == status
        headers = {"Origin": origin, "Content-Length": "2"}
        assert browser.post("/gradio/gradio_api/queue/join", content=b"{}", headers=headers).status_code == status


def test_the_browser_may_load_nothing_from_elsewhere(browser: httpx.Client) -> None:
    headers = browser.get("/gradio/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'" and not any("*" in each or "http" in each for each in policy.values())
    assert headers["referrer-policy"] == "same-origin" and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["upload", "proxy=https://example.org", "stream/1", "deep_link"])
def test_doors_that_the_page_does_not_use_are_shut(browser: httpx.Client, path: str) -> None:
    assert browser.post(f"/gradio/gradio_api/{path}", content=b"x").status_code == 404
    assert browser.get(f"/gradio/gradio_api/{path}").status_code == 404


def test_bodies_are_limited_and_their_length_is_told(browser: httpx.Client) -> None:
    large = b"x" * 4_000_001
    assert browser.post("/gradio/gradio_api/queue/join", content=large).status_code == 413
    unknown = browser.post("/gradio/gradio_api/queue/join", content=iter([b"{}"]))
    assert unknown.status_code == 411


def test_the_key_is_asked_for_in_the_browsers_language_and_opens_the_page(locked: httpx.Client) -> None:
    asked = locked.get("/gradio/", headers={"Accept-Language": "zh-CN,en;q=0.5"})
    assert asked.status_code == 401 and "需要 API 密钥" in asked.text and "script" not in asked.text
    assert "wants its API key" in locked.get("/gradio/", headers={"Accept-Language": "fr"}).text
    wrong = locked.post("/login", data={"key": "a guess", "next": "/gradio/"})
    assert wrong.status_code == 401 and "not the key" in wrong.text and not wrong.cookies
    right = locked.post("/login", data={"key": KEY, "next": "/gradio/?x=1"})
    assert right.status_code == 303 and right.headers["location"] == "/gradio/?x=1"
    kept = right.headers["set-cookie"]
    assert "HttpOnly" in kept and "SameSite=strict" in kept and KEY not in kept
    assert locked.get("/gradio/").status_code == 501  # in, and told that Gradio is missing
    locked.cookies.clear()
    assert locked.get("/gradio/", headers={"Authorization": f"Bearer {KEY}".encode()}).status_code == 501
    assert locked.get("/gradio/", headers={"Authorization": "Bearer a key 密钥x".encode()}).status_code == 401


@pytest.mark.parametrize("cookie", ["", "x", KEY.encode().hex(), ticket_for("not a key")])
def test_a_forged_cookie_opens_nothing(locked: httpx.Client, cookie: str) -> None:
    for path in ("/gradio/", "/gradio/config", "/gradio/gradio_api/info", "/gradio//config", "/gradio/assets/x.js"):
        assert locked.get(path, headers={"Cookie": f"{COOKIE}={cookie}"}).status_code == 401


def test_the_key_cannot_be_typed_on_another_site(locked: httpx.Client) -> None:
    evil = {"Origin": "http://evil.example"}
    assert locked.post("/login", data={"key": KEY}, headers=evil).status_code == 403
    assert locked.post("/login", data={"key": KEY, "next": "x" * 20_000}).status_code == 403


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/gradio/?a=b", "/gradio/?a=b"), ("//evil.example", "/gradio/"), ("/\\evil.example", "/gradio/"),
        ("https://evil.example", "/gradio/"), ("", "/gradio/"), ("/a\r\nSet-Cookie: x", "/gradio/"),
    ],
)  # fmt: skip
def test_the_login_leads_on_to_this_server_only(path: str, target: str) -> None:
    assert local_path(path) == target


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"), ("zh", "zh"), ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-US,zh;q=0.9", "en"), ("fr, zh;q=0.4", "zh"),
        ("zh;q=0.1, en;q=0.2", "en"), ("zh;q=x", "en"), ("ZH-tw", "zh"), (";;,,", "en"),
    ],
)  # fmt: skip
def test_the_language_is_the_one_the_browser_likes_best(header: str, language: str) -> None:
    assert preferred(header) == language


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names and addresses of hosts that this process asks for or connects to."""
    asked: list[str] = []
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def resolving(host: Any, *rest: Any, **named: Any) -> Any:
        asked.append(str(host))
        return resolve(host, *rest, **named)

    def connecting(self: socket.socket, address: Any) -> None:
        asked.append(str(address[0] if isinstance(address, tuple) else address))
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", resolving)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    return asked


@pytest.mark.slow
def test_the_server_asks_no_other_host(model: TextModel, hosts: list[str]) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio, which is not installed")
    with running(model, ServeConfig(model="phone", port=0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/gradio/").status_code == 200
        time.sleep(1)  # Gradio would report from a thread
    assert hosts and set(hosts) <= {"127.0.0.1", "localhost"}


@pytest.mark.slow
def test_the_page_is_built_when_it_is_first_opened_and_its_html_names_no_other_host(model: TextModel) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio, which is not installed")
    with running(model, ServeConfig(model="phone", port=0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        page = client.get("/gradio/")
        assert page.status_code == 200 and '"analytics_enabled":false' in page.text
        loads = [line for line in page.text.splitlines() if ("src=" in line or "<link" in line) and "http" in line]
        assert loads == []
        assert client.get("/gradio/config").json()["title"] == "phone · Leveret"
        assert client.get("/gradio/gradio_api/info").json()["named_endpoints"] == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")  # Gradio's
@pytest.mark.filterwarnings("ignore:The copy keyword is deprecated")
def test_forty_people_at_once_get_what_each_alone_gets(model: TextModel) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio, which is not installed")

    async def ask(client: httpx.AsyncClient, event: int, number: int) -> str:
        """As the page's script asks: an event goes into Gradio's queue, views come as a stream; the last one's text."""
        person = f"person{number}"
        data = [f"Message {number}", None, "", 0.0, 1, 0, 12, 1, False, "en"]
        body = {"data": data, "fn_index": event, "session_hash": person, "trigger_id": None, "event_data": None}
        assert (await client.post("/gradio/gradio_api/queue/join", json=body)).status_code == 200
        query = {"session_hash": person}
        async with client.stream("GET", "/gradio/gradio_api/queue/data", params=query) as stream:
            async for line in stream.aiter_lines():
                view = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if view.get("msg") == "process_completed":
                    return "\n".join(part["text"] for each in view["output"]["data"][1] for part in each["content"])
        raise AssertionError("the stream ended early")

    async def together(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            events = (await client.get("/gradio/config")).json()["dependencies"]
            event = next(each["id"] for each in events if any(target[1] == "submit" for target in each["targets"]))
            return await asyncio.gather(*(ask(client, event, number) for number in range(40)))

    with running(model, ServeConfig(model="phone", port=0)) as url:
        shown = asyncio.run(together(url))
    for number, text in enumerate(shown):
        alone = model.chat([{"role": "user", "content": f"Message {number}"}], max_tokens=12).content
        assert text.startswith(f"Message {number}\n{alone.strip()}") and text.count("Message") == 1
