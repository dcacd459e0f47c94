"""A server as a backend: our own, and one that does what servers do when they do not like what they are asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from openai import BadRequestError, OpenAI

import leveret
from leveret.engine.backends.by_server import Reading, ServerBackend
from leveret.engine.backends.completions import Completions, Piece, request_body
from leveret.engine.request import Request, SamplingParams
from leveret.engine.row import Progress, Row
from leveret.engine.structure import Structure
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.serve.config import ServeConfig
from leveret.serve.running import running

PROMPTS = ["Set a timer for five minutes", "明天早上七点半", "Once upon a time"]


@pytest.fixture(scope="module")
def served(model_dir: Path) -> Iterator[TextModel]:
    """The model of `model_dir`, answered for by our own server."""
    whole = leveret.load(model_dir, dtype="float32")
    with running(whole, ServeConfig(model=str(model_dir), port=0)) as url:
        yield leveret.load(model_dir, backend=f"{url}/v1")


@pytest.mark.parametrize("options", [{"max_tokens": 14}, {"max_tokens": 14, "temperature": 1.2, "seed": 9, "top_k": 9}])
def test_our_server_gives_the_texts_of_our_engine(served: TextModel, model: TextModel, options: dict[str, Any]) -> None:
    texts = {}
    for each in (model, served):
        texts[each] = [reply.content for reply in each.run([each.prepare_text(text, **options) for text in PROMPTS])]
    assert texts[served] == texts[model]
    assert any(texts[model])


def test_a_chat_is_rendered_here_and_ends_where_the_template_says(served: TextModel, model: TextModel) -> None:
    conversation = [{"role": "user", "content": "Hi"}]
    replies = [each.chat(conversation, max_tokens=20) for each in (model, served)]
    assert replies[0].content == replies[1].content
    assert replies[0].finish_reason == replies[1].finish_reason


def test_what_a_server_cannot_be_asked_is_refused(served: TextModel) -> None:
    with pytest.raises(RequestError, match="cannot be kept to a form") as caught:
        served.generate("Set", choice=["a", "b"])
    assert caught.value.param == "choice" and "constrained" not in str(caught.value.hint)  # which would not help
    conversation = [{"role": "user", "content": "Hi"}]
    declared = {"type": "function", "function": {"name": "f", "description": "F."}}
    form = Structure.json_object(param="response_format")
    for options, param in (({"structure": form}, "response_format"), ({"tools": [declared]}, "tools")):
        with pytest.raises(RequestError, match="cannot be kept to a form") as caught:
            served.chat(conversation, **options)
        assert caught.value.param == param
    with pytest.raises(RequestError, match="log probabilities"):
        served.generate("Set", logprobs=2)


def test_the_tokens_of_an_answer_are_those_that_the_server_counts(
    served: TextModel, model: TextModel, scripted: tuple[type[Script], str], model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    jobs = [each.prepare_text("Set a", max_tokens=9, temperature=1.5, seed=2) for each in (model, served)]
    assert model.run(jobs[:1])[0].usage == served.run(jobs[1:])[0].usage
    script, url = scripted
    counted = {"usage": {"completion_tokens": 42, "prompt_tokens": 5}}
    end, done = piece("", "stop"), "data: [DONE]"
    for events, number in (
        ([piece(" a"), end, {"choices": [], **counted}, done], 42),
        ([piece(" a"), {**end, **counted}, done], 42),
        ([{**piece(" a"), "usage": None}, end, {"choices": [], "usage": None}, done], None),
        ([piece(" a"), end], None),
    ):
        monkeypatch.setattr(script, "events", events)
        other = leveret.load(model_dir, backend=url)
        [reply] = other.run([other.prepare_text("Set", max_tokens=50)])
        assert reply.content == " a"
        assert reply.usage.completion_tokens == (number or len(model.tokenizer.encode(" a")))


def test_what_the_server_generated_behind_a_stop_is_nobodys(
    scripted: tuple[type[Script], str], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its count has come when the stop is found is chance; the answer has the tokens up to the stop."""
    script, url = scripted
    last = {**piece(" aXtime of long", "stop"), "usage": {"completion_tokens": 42, "prompt_tokens": 5}}
    monkeypatch.setattr(script, "events", [last, "data: [DONE]"])
    other = leveret.load(model_dir, backend=url)
    [reply] = other.run([other.prepare_text("Once upon", stop=["X"])])
    assert reply.content == " a" and reply.usage.completion_tokens == len(other.tokenizer.encode(" aX"))
    assert script.asked[0]["stream_options"] == {"include_usage": True}


class Script(BaseHTTPRequestHandler):
    """Answers /completions by the class's script; notes what it was asked."""

    events: ClassVar[list[Any]] = []
    refuses: ClassVar[tuple[str, ...]] = ()
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "one"}, {"id": "two", "max_model_len": 64}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        if bad := [name for name in self.refuses if name in body]:
            self._send(400, json.dumps({"error": {"message": f"what is {bad[0]}?"}}))
            return
        lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in self.events]
        self._send(200, "\n\n".join(lines) + "\n\n")

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def piece(text: str, reason: str | None = None, tokens: list[int] | None = None) -> dict[str, Any]:
    logprobs = None if tokens is None else {"tokens": [f"token_id:{each}" for each in tokens]}
    return {"choices": [{"text": text, "finish_reason": reason, "logprobs": logprobs}]}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Script], str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    monkeypatch.setattr(Script, "asked", [])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Script, f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_a_server_that_refuses_helpful_fields_is_asked_without_them_from_then_on(
    scripted: tuple[type[Script], str], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, url = scripted
    monkeypatch.setattr(script, "events", [piece(" a"), piece(" timer"), piece("", "stop"), "data: [DONE]"])
    monkeypatch.setattr(script, "refuses", ("return_tokens_as_token_ids",))
    model = leveret.load(model_dir, backend=url)
    assert model.generate("Set", max_tokens=8, top_k=5) == " a timer"
    assert model.generate("Set", max_tokens=8) == " a timer"
    assert ["return_tokens_as_token_ids" in body for body in script.asked] == [True, False, False]
    assert script.asked[1]["top_k"] == 5, "what decides the answer is never left out"


def test_a_refused_request_ends_with_the_servers_words(
    scripted: tuple[type[Script], str], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, url = scripted
    monkeypatch.setattr(script, "refuses", ("top_k",))
    with pytest.raises(RequestError, match=r"400: what is top_k\?"):
        leveret.load(model_dir, backend=url).generate("Set", max_tokens=8, top_k=5)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([piece(" a")], "closed the connection before the answer was complete"),
        ([piece(" a"), {"error": {"message": "out of memory"}}], "failed: out of memory"),
        ([piece(" a"), "data: {half"], "broke off"),
        ([piece(" a"), "data: 5"], "sent no object, but 5"),
        ([piece(" a"), {"choices": [7]}], "the server's answer could not be read"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(
    scripted: tuple[type[Script], str],
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: list[Any],
    message: str,
) -> None:
    script, url = scripted
    monkeypatch.setattr(script, "events", events)
    with pytest.raises(RequestError, match=message):
        leveret.load(model_dir, backend=url).generate("Set", max_tokens=8)


def test_a_server_may_say_that_there_is_no_error_and_that_an_event_has_no_choices(
    scripted: tuple[type[Script], str], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, url = scripted
    events = [{**piece(" a"), "error": None}, {"choices": None}, piece("", "stop"), "data: [DONE]"]
    monkeypatch.setattr(script, "events", events)
    assert leveret.load(model_dir, backend=url).generate("Set", max_tokens=8) == " a"


def test_ids_are_taken_as_given_and_end_at_a_stop_id(
    scripted: tuple[type[Script], str], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, url = scripted
    model = leveret.load(model_dir, backend=url)
    end = model.tokenizer.eos_id
    assert end is not None
    monkeypatch.setattr(
        script, "events", [piece("xy", None, [40, 41]), piece("z", None, [42, end, 43]), piece("", "length")]
    )
    request = Request(prompt_ids=(5,), params=SamplingParams(max_tokens=9, stop_ids=(end,)))
    (completion,) = model.engine.generate([request])
    assert (completion.ids, completion.stop_id, completion.finish_reason) == ((40, 41, 42), end, "stop")


def test_text_in_pieces_that_read_differently_apart_stays_the_text(model: TextModel) -> None:
    text = "Set a timer 🐢 明天 </s> five"
    for size in (1, 2, 3):
        reading, ids = Reading(model.tokenizer, ()), []
        for start in range(0, len(text), size):
            ids += reading.read(Piece(text=text[start : start + size], ids=None, finish_reason=None))
        ids += reading.read(Piece(text="", ids=None, finish_reason="stop"))
        assert model.tokenizer.decode(ids) == text


class Scripted(Completions):
    """Says what `script` has for the first id of a prompt: pieces, an error, or nothing until an event is set."""

    context_tokens = None

    def __init__(self, script: dict[int, list[Any]]) -> None:
        self.script = script

    def stream(self, request: Request) -> Iterator[Piece]:
        for each in self.script[request.prompt_ids[0]]:
            if isinstance(each, threading.Event):
                each.wait(60)
            elif isinstance(each, RequestError):
                raise each
            else:
                yield each


def submitted(backend: ServerBackend, first_id: int) -> Row:
    return backend.submit(Request(prompt_ids=(first_id,), params=SamplingParams(max_tokens=9)))


def test_a_step_ends_though_all_it_waited_for_was_cancelled(model: TextModel) -> None:
    never = threading.Event()
    backend = ServerBackend(Scripted({1: [never]}), model.tokenizer)
    row = submitted(backend, 1)
    threading.Timer(0.05, backend.cancel, (row,)).start()
    while backend.stats.running_requests + backend.stats.waiting_requests:
        assert backend.step() == []
    assert (row.finish_reason, backend.stats.cancelled_requests) == ("cancelled", 1)
    never.set()


def test_an_error_for_one_request_loses_nothing_of_another(model: TextModel) -> None:
    ends = Piece(text="", ids=[7, 8], finish_reason="length")
    backend = ServerBackend(Scripted({1: [ends], 2: [RequestError("the server is gone")]}), model.tokenizer)
    row, failing = submitted(backend, 1), submitted(backend, 2)
    told: list[Progress] = []
    while backend.stats.running_requests + backend.stats.waiting_requests:
        told += backend.step()
    assert {each.row: each.ids for each in told} == {row: [7, 8], failing: []} and len(told) == 2
    assert row.completion().ids == (7, 8)
    with pytest.raises(RequestError, match="the server is gone"):
        failing.completion()
    assert (backend.stats.finished_requests, backend.stats.cancelled_requests) == (1, 1)


def test_a_server_in_front_of_a_server_ends_only_the_request_that_fails(
    scripted: tuple[type[Script], str], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, url = scripted
    monkeypatch.setattr(script, "events", [piece(" a timer", "stop"), "data: [DONE]"])
    monkeypatch.setattr(script, "refuses", ("top_k",))
    behind = leveret.load(model_dir, backend=url)
    with running(behind, ServeConfig(model=str(model_dir), port=0)) as front:
        client = OpenAI(base_url=f"{front}/v1", api_key="none", max_retries=0)

        def ask(index: int) -> str:
            extra = {"top_k": 5} if index % 2 else {}
            try:
                return (
                    client.completions.create(model="phone", prompt="Set", max_tokens=8, extra_body=extra)
                    .choices[0]
                    .text
                )
            except BadRequestError as error:
                return error.message

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(16)))
    assert answers[::2] == [" a timer"] * 8
    assert all("what is top_k?" in answer for answer in answers[1::2])


def test_a_named_model_is_asked_for_and_a_missing_one_is_an_error(
    scripted: tuple[type[Script], str], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, url = scripted
    monkeypatch.setattr(script, "events", [piece("x", "stop")])
    model = leveret.load(model_dir, backend=f"{url}#two")
    assert model.engine.context_tokens == 64
    model.generate("Set", max_tokens=8)
    assert script.asked[-1]["model"] == "two"
    with pytest.raises(RequestError, match="no model 'three'; it has: one, two"):
        leveret.load(model_dir, backend=f"{url}#three")


def test_nobody_at_the_url_is_an_error_with_the_url(model_dir: Path) -> None:
    with pytest.raises(RequestError, match=r"no answer from http://127\.0\.0\.1:9/v1"):
        leveret.load(model_dir, backend="http://127.0.0.1:9/v1")


def test_the_sampling_of_a_request_is_said_in_openais_words() -> None:
    params = SamplingParams(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        min_p=0.1,
        seed=4,
        banned_ids=(3,),
        logit_bias=((5, 2.0),),
        stop_ids=(2,),
    )
    body = request_body(Request(prompt_ids=(1, 2), params=params))
    assert body == {
        "prompt": [1, 2], "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "seed": 4,
        "logit_bias": {"5": 2.0, "3": -100.0},
    }  # fmt: skip
