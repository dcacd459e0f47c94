"""The page in a real browser, headless Chromium: what a person sees, and what the browser asks for.

Skipped where there is no Chromium (Debian: `apt install chromium`), no playwright or no Gradio.
"""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leveret.engine.assembler import TextAssembler
from leveret.engine.text import TextModel
from leveret.serve.config import ServeConfig
from leveret.serve.running import running
from leveret.serve.web.words import WORDS

pytest.importorskip("gradio", reason="the page needs gradio, which is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Gradio's and playwright's own, as the next one
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

EN, ZH = WORDS["en"], WORDS["zh"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def page_url(model: TextModel) -> Iterator[str]:
    with running(model, ServeConfig(model="phone", port=0)) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, page_url: str) -> Iterator[Open]:
    """Opens the page as a new person; at the end, nobody's browser has asked another host or complained."""
    contexts, complaints = [], []

    def open_page(url: str = page_url, **options: Any) -> Any:
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: _foreign(request.url, url, complaints))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}/gradio/")
        page.wait_for_selector("#send, form")
        page.wait_for_timeout(300)
        return page

    yield open_page
    for context in contexts:
        context.close()
    expected = ("x.example", "401 (Unauthorized)")  # an image that a message names; the page that asks for the key
    assert [each for each in complaints if not any(word in each for word in expected)] == []


def _foreign(asked: str, own: str, complaints: list[str]) -> None:
    if not asked.startswith((f"{own}/", "data:", "blob:")):
        complaints.append(f"asked for {asked}")


def say(page: Any, text: str) -> None:
    """Send a message; its first view empties the box and turns the buttons."""
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")
    taken = f"document.querySelector('#chat').innerText.includes({EN.error!r})"
    page.wait_for_function(f"document.querySelector('#message textarea').value === '' || {taken}")


def answered(page: Any) -> list[str]:
    """Waits until what was sent is answered; the texts of the model's bubbles."""
    page.wait_for_selector("#chat .bot")
    page.wait_for_selector("#send:not([disabled])")
    page.wait_for_selector("#stop[disabled]")
    return [text.strip() for text in page.locator("#chat .bot").all_inner_texts()]


def set_slider(page: Any, key: str, value: float) -> None:
    box = page.locator(f"#{key} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def test_an_answer_streams_in_and_is_the_models(opened: Open, model: TextModel) -> None:
    page = opened()
    page.uncheck("#tools input")
    set_slider(page, "max_tokens", 10)
    say(page, "Hi")
    expected = model.chat([{"role": "user", "content": "Hi"}], max_tokens=10).content
    shown = " ".join(answered(page))
    assert EN.cut_off in shown and _plain(expected)[:4] in _plain(shown)
    assert page.input_value("#message textarea") == ""


def _plain(text: str) -> str:
    return re.sub(r"\W", "", text)


def test_two_people_do_not_mix(opened: Open) -> None:
    first, second = opened(), opened()
    for page, system, text in ((first, "Be brief.", "from the first"), (second, "", "from the second")):
        page.fill("#system textarea", system)
        page.uncheck("#tools input")
        set_slider(page, "max_tokens", 300)
        say(page, text)
    for page in (first, second):
        answered(page)
    assert "from the second" not in first.inner_text("#chat") and "from the first" not in second.inner_text("#chat")
    assert second.input_value("#system textarea") == ""


def test_retry_keeps_the_turns_and_clear_forgets_them(opened: Open) -> None:
    page = opened()
    page.uncheck("#tools input")
    set_slider(page, "max_tokens", 6)
    for text in ("fine", "twice"):
        say(page, text)
        answered(page)
    before = answered(page)
    page.click("#retry")
    page.wait_for_timeout(500)
    assert answered(page) == before and "fine" in page.inner_text("#chat") and "twice" in page.inner_text("#chat")
    page.click("#clear")
    page.wait_for_function("!document.querySelector('#chat').innerText.includes('fine')")
    page.click("#retry")
    page.wait_for_function(f"document.querySelector('#chat').innerText.includes({EN.nothing_asked!r})")


def running_now(url: str, page: Any) -> int:
    return int(page.request.get(f"{url}/health").json()["running"])


def test_stop_ends_the_answer_and_frees_the_worker(opened: Open, page_url: str, slow_steps: None) -> None:
    page = opened()
    page.uncheck("#tools input")
    set_slider(page, "max_tokens", 1500)
    say(page, "Hi")
    page.wait_for_selector("#chat .bot")
    assert running_now(page_url, page) == 1
    page.click("#stop")
    page.wait_for_selector("#stop[disabled]")
    wait_for(lambda: running_now(page_url, page) == 0)
    kept = page.inner_text("#chat .bot")
    set_slider(page, "max_tokens", 6)
    say(page, "Again")
    assert kept in page.inner_text("#chat") and answered(page)


def test_clear_in_the_middle_of_an_answer_forgets_it(opened: Open, page_url: str, slow_steps: None) -> None:
    page = opened()
    page.uncheck("#tools input")
    set_slider(page, "max_tokens", 1500)
    say(page, "Hi, here I am")
    page.wait_for_selector("#chat .bot")
    page.click("#clear")
    wait_for(lambda: running_now(page_url, page) == 0)
    page.wait_for_timeout(500)
    page.wait_for_selector("#stop[disabled]")
    assert "here I am" not in page.inner_text("#chat") and page.locator("#chat .bot").count() == 0


def test_a_closed_tab_frees_the_worker(opened: Open, page_url: str, slow_steps: None) -> None:
    page, watcher = opened(), opened()
    page.uncheck("#tools input")
    set_slider(page, "max_tokens", 1500)
    say(page, "Hi")
    page.wait_for_selector("#chat .bot")
    wait_for(lambda: running_now(page_url, watcher) == 1)
    page.close()
    wait_for(lambda: running_now(page_url, watcher) == 0)


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes its time, so that a person can be quicker."""
    push = TextAssembler.push

    def slow(assembler: TextAssembler, token_id: int) -> str:
        time.sleep(0.02)
        return push(assembler, token_id)

    monkeypatch.setattr(TextAssembler, "push", slow)


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def test_the_language_follows_the_browser_and_the_switch(opened: Open) -> None:
    page = opened(locale="zh-CN")
    page.wait_for_function(f"document.querySelector('#send').innerText === {ZH.send!r}")
    assert ZH.settings in page.inner_text("body") and page.inner_text("#clear") == ZH.clear
    page.click("#language label:has-text('English')")
    page.wait_for_function(f"document.querySelector('#send').innerText === {EN.send!r}")
    assert EN.temperature_hint in page.inner_text("#temperature")
    assert opened().inner_text("#send") == EN.send


def test_calls_are_readable(opened: Open, model: TextModel) -> None:
    page = opened()
    say(page, "Set a timer for five minutes")
    shown = "\n".join(answered(page))
    calls = model.call_tools(["Set a timer for five minutes"])[0]
    assert all(call.name in shown for call in calls or []) and (calls or EN.no_tool in shown)


def test_an_error_is_shown_and_the_message_comes_back(opened: Open) -> None:
    page = opened()
    page.uncheck("#tools input")
    say(page, "x " * 3000)
    page.wait_for_function(f"document.querySelector('#chat').innerText.includes({EN.error!r})")
    assert "context holds" in page.inner_text("#chat")
    assert page.input_value("#message textarea").startswith("x x x")


def test_nothing_in_a_message_is_loaded_or_run(opened: Open) -> None:
    page = opened()
    page.uncheck("#tools input")
    set_slider(page, "max_tokens", 4)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(1)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/x.example.png"
        say(page, f"![x]({address}) <img src='{address}' onerror='document.title=\"run\"'> <script>alert(1)</script>")
        answered(page)
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert page.title() == "phone · Leveret"


def test_the_key_opens_the_page(model: TextModel, opened: Open) -> None:
    with running(model, ServeConfig(model="phone", port=0, api_key="sesame")) as url:
        page = opened(url, locale="zh-CN")
        assert page.locator("#send").count() == 0
        page.fill("input[name=key]", "sesame")
        page.click("button")
        page.wait_for_selector("#send")
        page.uncheck("#tools input")
        set_slider(page, "max_tokens", 4)
        say(page, "Hi")
        assert answered(page)
        page.close()


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(opened: Open) -> None:
    page = opened(viewport={"width": 360, "height": 740}, locale="zh-CN")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for part in ("#message", "#send", "#stop", "#retry", "#clear", "#temperature", "#repetition_penalty"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
        assert box["height"] < 60 or not part.startswith("#c")  # a button's words stay on one line


def test_a_run_is_shown_with_its_xray_and_nothing_runs_in_it(model: TextModel, chromium: Any, tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "train"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    (folder / "xray.html").write_text("<p id=seen>trained</p><script>document.getElementById('seen').remove()</script>")
    with running(model, ServeConfig(model="phone", port=0, runs=tmp_path)) as url:
        page = chromium.new_page(viewport={"width": 360, "height": 740}, locale="zh-CN")
        page.goto(f"{url}/runs")
        page.click("text=demo")
        assert page.inner_text("h1") == "demo" and "损失" in page.inner_text("main")
        assert page.frame_locator("iframe").locator("#seen").inner_text() == "trained"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.click("text=English")
        assert "Label X-ray" in page.inner_text("body")
        page.close()


def test_a_base_model_has_a_page_that_continues_texts(model: TextModel, opened: Open) -> None:
    base = TextModel(model.model, model.tokenizer, name="base")
    with running(base, ServeConfig(model="base", port=0)) as url:
        page = opened(url)
        assert EN.intro_base in page.inner_text("body") and EN.system not in page.inner_text("body")
        set_slider(page, "max_tokens", 5)
        page.locator("#top_k input[type=number]").fill("")
        say(page, "class A:\n    def")
        assert answered(page) and EN.error not in page.inner_text("#chat")
        page.close()
