"""The conversation behind the page, without Gradio: views of answers, retry, errors, stop; nobody's turns mix."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from leveret.chat.messages import Message
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.serve.web.answering import Interruption
from leveret.serve.web.talk import Settings, Talk, Turns, View, bubbles
from leveret.serve.web.words import WORDS
from leveret.serve.worker import Worker

SETTINGS = Settings(system="", temperature=0.0, top_p=1.0, top_k=0, max_tokens=12, repetition_penalty=1.0, tools=False)
EN = WORDS["en"]


@pytest.fixture
def worker(model: TextModel) -> Iterator[Worker]:
    worker = Worker(model, max_running=4, max_waiting=100)
    yield worker
    worker.close()


@pytest.fixture
def talk(model: TextModel, worker: Worker) -> Talk:
    return Talk(model=model, submit=worker.submit)


async def all_of(views: AsyncGenerator[View]) -> list[View]:
    return [view async for view in views]


def said(talk: Talk, text: str, turns: Turns = (), settings: Settings = SETTINGS) -> list[View]:
    return asyncio.run(asyncio.wait_for(all_of(talk.say(text, turns, settings, EN)), timeout=60))


def test_an_answer_grows_to_what_the_model_says(talk: Talk, model: TextModel) -> None:
    views = said(talk, "Hi")
    last = views[-1]
    expected = model.chat([{"role": "user", "content": "Hi"}], max_tokens=12).content
    assert [turn.content for turn in last.turns] == ["Hi", expected] and not last.running
    assert views[0].running and views[0].message == "" and [len(view.turns) for view in views[:1]] == [1]
    assert last.bubbles[-1]["content"] == f"(… {EN.cut_off})"
    grown = [view.turns[-1].content for view in views[1:]]
    assert all(later.startswith(earlier) for earlier, later in pairwise(grown))


def test_the_system_message_and_the_sliders_reach_the_model(talk: Talk, model: TextModel) -> None:
    settings = replace(SETTINGS, system=" Be brief. ", repetition_penalty=1.4, max_tokens=9)
    turns = said(talk, "Again", (Message("user", "Hi"), Message("assistant", "yes")), settings)[-1].turns
    messages = [Message("system", "Be brief."), *turns[:-1]]
    assert turns[-1].content == model.chat(messages, max_tokens=9, repetition_penalty=1.4).content
    assert replace(SETTINGS, top_k=7, top_p=0.5).options()["top_k"] == 7 and SETTINGS.options()["top_p"] is None


def test_two_people_at_once_get_what_each_alone_gets(talk: Talk) -> None:
    async def together() -> list[list[View]]:
        texts = ["Set a timer", "明天早上七点半", "Alice", "🐢"]
        return await asyncio.gather(*(all_of(talk.say(text, (), SETTINGS, EN)) for text in texts))

    for views in asyncio.run(together()):
        alone = said(talk, views[0].turns[0].content)
        assert views[-1].turns == alone[-1].turns


def test_retry_keeps_the_turns_before(talk: Talk) -> None:
    first = said(talk, "Hi")[-1].turns
    both = said(talk, "Again", first)[-1].turns
    again = asyncio.run(all_of(talk.retry(both, SETTINGS, EN)))[-1].turns
    assert again == both and again[:2] == first
    nothing = asyncio.run(all_of(talk.retry((), SETTINGS, EN)))
    assert len(nothing) == 1 and EN.nothing_asked in nothing[0].bubbles[0]["content"]


def test_a_question_that_cannot_be_answered_comes_back_with_the_reason(talk: Talk) -> None:
    turns = (Message("user", "Hi"), Message("assistant", "yes"))
    last = said(talk, "x " * 9000, turns)[-1]
    assert last.turns == turns and last.message == "x " * 9000 and not last.running
    assert last.bubbles[-1]["metadata"]["title"] == EN.error and "context" in last.bubbles[-1]["content"]
    again = said(talk, "  \n", turns)
    assert len(again) == 1 and again[0].turns == turns and again[0].message is None


def test_a_full_server_says_so(model: TextModel) -> None:
    def refuse(ticket: object) -> None:
        raise RequestError("256 requests are waiting already", code="overloaded", hint="try again later")

    last = said(Talk(model=model, submit=refuse), "Hi")[-1]
    assert "256 requests are waiting" in last.bubbles[-1]["content"] and last.message == "Hi"


def test_empty_fields_are_left_to_the_model(model: TextModel, worker: Worker) -> None:
    empty = Settings(
        system=None, temperature=None, top_p=None, top_k=None, max_tokens=None, repetition_penalty=None, tools=None
    )
    assert empty.options() == {}
    last = said(Talk(model=model, submit=worker.submit), "Hi", settings=replace(empty, max_tokens=5))[-1]
    assert last.turns[1].content == model.chat([{"role": "user", "content": "Hi"}], max_tokens=5).content


def test_an_error_of_ours_is_told_too_and_the_page_goes_on(model: TextModel) -> None:
    def broken(ticket: object) -> None:
        raise ZeroDivisionError("oh")

    last = said(Talk(model=model, submit=broken), "Hi")[-1]
    assert "ZeroDivisionError: oh" in last.bubbles[-1]["content"] and not last.running and last.message == "Hi"


def test_who_stops_listening_cancels_the_job_and_keeps_what_was_said(talk: Talk, worker: Worker) -> None:
    async def stopped() -> View:
        views = talk.say("Hi", (), replace(SETTINGS, max_tokens=1500), EN)
        async for view in views:
            if len(view.turns) == 2 and view.turns[1].content:
                break
        await views.aclose()
        return view

    view = asyncio.run(stopped())
    wait_until_idle(worker)
    assert view.running and view.turns[1].content


def wait_until_idle(worker: Worker) -> None:
    deadline = time.monotonic() + 10
    while worker.num_running:
        assert time.monotonic() < deadline, "the job goes on"
        time.sleep(0.01)


def test_calls_are_shown_with_their_arguments_and_what_a_phone_would_do(talk: Talk, model: TextModel) -> None:
    last = said(talk, "Set a timer for five minutes", settings=replace(SETTINGS, tools=True, max_tokens=60))[-1]
    calls = model.call_tools(["Set a timer for five minutes"], max_tokens=60)[0]
    assert calls is not None and list(last.turns[-1].tool_calls) == calls
    titles = [bubble["metadata"]["title"] for bubble in last.bubbles if "metadata" in bubble]
    assert titles == [EN.call.format(call.name) for call in calls] or EN.no_tool in last.bubbles[-1]["content"]


def test_markdown_in_an_error_or_a_call_stays_text() -> None:
    from leveret.chat.messages import ToolCall

    turn = Message("assistant", "", tool_calls=(ToolCall("open", {"url": "```\n![x](http://evil)"}),))
    content = bubbles((turn,), EN)[0]["content"]
    assert content.startswith("```") and "\\n![x]" in content


def test_a_base_model_continues_each_text_by_itself(model: TextModel, worker: Worker) -> None:
    base = TextModel(model.model, model.tokenizer)
    views = said(Talk(model=base, submit=worker.submit), "Set a", (Message("user", "x"), Message("assistant", "y")))
    expected = base.generate("Set a", max_tokens=12)
    assert views[-1].turns[-1].content == expected and f"```\n{expected}\n```" == views[-1].bubbles[-2]["content"]


@pytest.mark.parametrize("clear", [False, True])
def test_an_interruption_is_the_last_view(talk: Talk, worker: Worker, clear: bool) -> None:
    async def interrupted() -> list[View]:
        end, views = Interruption(), []
        async for view in talk.say("Hi", (), replace(SETTINGS, max_tokens=1500), EN, end):
            views.append(view)
            if len(view.turns) == 2 and view.turns[1].content:
                end.ask(clear=clear)
        return views

    views = asyncio.run(interrupted())
    last = views[-1]
    assert not last.running and all(view.running for view in views[:-1])
    assert last.turns == (() if clear else views[-2].turns) and bool(last.bubbles) is not clear
    wait_until_idle(worker)


def test_a_question_that_is_stopped_before_its_answer_comes_back(talk: Talk) -> None:
    async def interrupted() -> View:
        end = Interruption()
        end.ask()
        return [view async for view in talk.say("Hi", (), SETTINGS, EN, end)][-1]

    last = asyncio.run(interrupted())
    assert last.turns == () and last.message == "Hi" and not last.running
