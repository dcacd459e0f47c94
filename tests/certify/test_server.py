"""Certifying a running server: our own over HTTP, and one that answers as vLLM, llama.cpp or a bare server does."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.certify.by_leveret import LeveretForm, from_directory
from leveret.certify.zoo import Fixture
from leveret.engine.text import TextModel
from leveret.errors import CertificateError, ConfigError, LeveretError, RequestError
from leveret.model.decoder import Decoder
from leveret.serve.config import ServeConfig
from leveret.serve.running import running

from .test_forms import gguf
from .test_run import certify, verdicts

MakeForm = Callable[..., Path]


class FakeServer:
    """Answers from a form; `kind` says in whose way."""

    def __init__(self, form: LeveretForm, kind: str) -> None:
        self.form, self.kind = form, kind

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        known = {"/v1/models": self.models, "/v1/completions": self.complete, "/v1/chat/completions": self.chat}
        if self.kind != "bare":
            known |= {"/tokenize": self.tokenize}
        if self.kind == "llama.cpp":
            known |= {"/apply-template": self.render}
        return known[path](body) if path in known else None

    def models(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"data": [{"id": "the-model"}]}

    def fixture(self, body: dict[str, Any]) -> Fixture:
        add = body.get("add_generation_prompt", True)
        messages, tools = tuple(body["messages"]), tuple(body.get("tools", ()))
        return Fixture(name="x", messages=messages, tools=tools, add_generation_prompt=add)

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.kind == "llama.cpp":
            text, special = body.get("content", ""), body.get("parse_special", True)
            return {"tokens": self.form.own_tokenizer.encode(text, allow_special=special)}
        ids = self.form.encode(Fixture(name="x", text=body["prompt"]) if "prompt" in body else self.fixture(body))
        return {"count": len(ids or ()), "tokens": list(ids or ())}

    def render(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.form.encode(self.fixture(body))
        return {"prompt": self.form.own_tokenizer.decode(list(ids or ()))}

    def chat(self, body: dict[str, Any]) -> dict[str, Any] | None:
        ids = self.form.encode(self.fixture(body))
        return None if ids is None else {"choices": [], "usage": {"prompt_tokens": len(ids)}}

    def complete(self, body: dict[str, Any]) -> dict[str, Any] | None:
        if self.kind != "vllm" and (body.get("echo") or (body.get("logprobs") and self.kind == "bare")):
            return None
        prompt, logprobs = body["prompt"], None
        ids = self.form.continue_greedily([prompt], body["max_tokens"])[0]
        ends = self.form.stops.declared | self.form.stops.implied
        ids = ids[: next((at for at, index in enumerate(ids) if index in ends), len(ids))]
        if self.kind == "vllm" and body.get("echo"):
            logprobs = self.listed([*prompt, *ids])
        elif self.kind == "llama.cpp" and body.get("logprobs"):
            logprobs = {"content": self.steps(prompt, ids, body["logprobs"])}
        text = self.form.own_tokenizer.decode(list(ids), skip_special=True)
        return {"choices": [{"text": text, "logprobs": logprobs, "finish_reason": "length"}]}

    def listed(self, ids: list[int]) -> dict[str, Any]:
        rows = self.form.logits(ids).log_softmax(-1)
        tops = [{f"token_id:{index}": float(row[index]) for index in row.topk(5).indices} for row in rows[:-1]]
        following = [float(row[index]) for row, index in zip(rows[:-1], ids[1:], strict=True)]
        tokens = [f"token_id:{index}" for index in ids]
        return {"tokens": tokens, "token_logprobs": [None, *following], "top_logprobs": [None, *tops]}

    def steps(self, prompt: list[int], ids: tuple[int, ...], count: int) -> list[dict[str, Any]]:
        rows = self.form.logits([*prompt, *ids]).log_softmax(-1)[len(prompt) - 1 :]
        return [
            {
                "id": index,
                "top_logprobs": [{"id": int(one), "logprob": float(row[one])} for one in row.topk(count).indices],
            }
            for index, row in zip(ids, rows, strict=False)
        ]


@contextmanager
def faked(path: Path, kind: str) -> Iterator[str]:
    """A server in a thread; yields its base URL with /v1."""
    fake = FakeServer(from_directory("x", path), kind)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond({})

        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body: dict[str, Any]) -> None:
            found = fake.answer(self.path, body)
            data = json.dumps(found or {"error": {"message": f"no {self.path} here"}}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def checks(certificate: Path) -> dict[str, dict[str, str]]:
    content = json.loads((certificate / "certificate.json").read_text())
    return {check["name"]: check for check in content["comparisons"][0]["checks"]}


def test_a_server_that_scores_prompts_is_compared_in_everything_it_tells(
    make_form: MakeForm, text: Path, tmp_path: Path
) -> None:
    with faked(make_form("a"), "vllm") as url:
        certify(tmp_path / "a", url, server_numbers="exact", text=[text], output=tmp_path / "out")
    found = verdicts(tmp_path / "out")
    assert found.pop("stop ids") == "not compared" and set(found.values()) == {"same"}
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["forms"][1]["model"] == "the-model"


def test_llama_cpp_s_way_is_compared_along_its_answers_and_the_rest_is_told(
    make_form: MakeForm, text: Path, tmp_path: Path
) -> None:
    with faked(make_form("a"), "llama.cpp") as url:
        certify(tmp_path / "a", url, server_numbers="exact", text=[text], output=tmp_path / "out")
    found = checks(tmp_path / "out")
    assert found["token ids"]["verdict"] == found["log probabilities"]["verdict"] == "same"
    assert "along its own answers" in found["log probabilities"]["measured"]
    assert found["perplexity"]["verdict"] == "not compared" and "echo" in found["perplexity"]["measured"]


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp", "bare"])
def test_a_form_whose_values_are_no_numbers_is_no_server_s_equal(make_form: MakeForm, kind: str) -> None:
    def spoil(model: Decoder) -> None:
        with torch.no_grad():
            model.layers[0].self_attn.v_proj.weight[0, 0] = torch.nan

    with faked(make_form("a"), kind) as url, pytest.raises(CertificateError, match="greedy text"):
        certify(make_form("b", change=spoil), url, server_numbers="exact")


@pytest.mark.parametrize(
    ("path", "answer", "part"),
    [
        ("/v1/models", {"data": [{"name": "x"}]}, "names of models"),
        ("/tokenize", {"tokens": ["a", "b"]}, "tokens"),
        ("/v1/completions", {"choices": []}, "choices"),
        ("/v1/completions", {"choices": [{"delta": "x"}]}, "text and its logprobs"),
        ("/v1/completions", {"choices": [{"text": "x", "logprobs": ["a"]}]}, "text and its logprobs"),
        (
            "/v1/completions",
            {"choices": [{"text": "x", "logprobs": {"tokens": ["no such token"] * 999}}]},
            "logprobs of a prompt",
        ),
    ],
)
def test_an_answer_of_another_form_is_named_with_its_part(
    make_form: MakeForm, monkeypatch: pytest.MonkeyPatch, path: str, answer: dict[str, Any], part: str
) -> None:
    ordinary = FakeServer.answer
    monkeypatch.setattr(FakeServer, "answer", lambda self, at, body: answer if at == path else ordinary(self, at, body))
    with faked(make_form("a"), "vllm") as url, pytest.raises(RequestError, match=f"its {part} are not of the usual"):
        certify(make_form("a"), url, server_numbers="exact")


def test_of_a_bare_server_what_cannot_be_compared_is_told(make_form: MakeForm, text: Path, tmp_path: Path) -> None:
    with faked(make_form("a"), "bare") as url:
        certify(tmp_path / "a", url, server_numbers="exact", text=[text], output=tmp_path / "out")
    found = checks(tmp_path / "out")
    assert (
        "the server tells their number only" in found["token ids"]["measured"]
        and found["token ids"]["verdict"] == "same"
    )
    assert found["greedy text"]["verdict"] == "same"
    for name in ("stop ids", "log probabilities", "KL divergence", "perplexity"):
        assert found[name]["verdict"] == "not compared" and len(found[name]["measured"]) > 20


def perturb(model: Decoder) -> None:
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[5, 7] += 2


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("vllm", r"first at text 'english', token 0: log probabilities differ"),
        ("llama.cpp", r"first at continuing 'one question', token \d+ .*: log probabilities differ"),
    ],
)
def test_other_weights_in_a_server_are_found_at_the_first_text(make_form: MakeForm, kind: str, place: str) -> None:
    with (
        faked(make_form("b", change=perturb), kind) as url,
        pytest.raises(CertificateError, match=rf"log probabilities, KL divergence.* differ\n  {place}"),
    ):
        certify(make_form("a"), url, server_numbers="exact")


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("vllm", r"first at chat 'one question', token \d+ .*: id"),
        ("llama.cpp", r"first at chat 'one question', token \d+ .*: id"),
        ("bare", r"first at chat 'one question', token \d+: \d+ ids against \d+"),
    ],
)
def test_another_template_in_a_server_is_found(make_form: MakeForm, kind: str, place: str) -> None:
    path = make_form("b")
    template = path / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|im_end|>'", "' <|im_end|>'"))
    with faked(path, kind) as url, pytest.raises(CertificateError, match=f"token ids differ\n  {place}"):
        certify(make_form("a"), url, server_numbers="exact")


def test_a_server_that_ends_elsewhere_writes_another_text(make_form: MakeForm) -> None:
    """Its stop ids are not told, but a reply that ends early shows them."""
    path = make_form("b")
    first = from_directory("a", make_form("a"))
    prompt = first.encode(Fixture(name="x", messages=({"role": "user", "content": ""},)))
    said = first.continue_greedily([prompt], 1)[0][0]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    with faked(path, "bare") as url, pytest.raises(CertificateError, match="greedy text differ"):
        certify(make_form("a"), url, server_numbers="exact")


def test_our_own_server_serves_the_model_that_it_was_given(make_form: MakeForm, text: Path, tmp_path: Path) -> None:
    model = TextModel.load(make_form("a"))
    with running(model, ServeConfig(model="a", port=0)) as url:
        certify(tmp_path / "a", f"{url}/v1", server_numbers="exact", text=[text], output=tmp_path / "out")
        found = verdicts(tmp_path / "out")
        assert found.pop("stop ids") == "not compared" and set(found.values()) == {"same"}
        assert "same choice 100.0%" in checks(tmp_path / "out")["KL divergence"]["measured"]
        with pytest.raises(CertificateError, match="log probabilities, KL divergence"):
            certify(make_form("b", change=perturb), f"{url}/v1", server_numbers="exact")


@pytest.mark.filterwarnings("ignore")  # of its packages' own making
def test_the_server_of_llama_cpp_python_is_compared_by_text(make_form: MakeForm, tmp_path: Path) -> None:
    """It takes no ids as a prompt, and goes on beyond what it was asked for until a character is whole."""
    app = pytest.importorskip("llama_cpp.server.app", reason="its server's packages are not installed")
    settings = pytest.importorskip("llama_cpp.server.settings")
    uvicorn = pytest.importorskip("uvicorn")
    model = settings.ModelSettings(
        model=str(gguf(make_form("a"))), logits_all=True, n_ctx=512, n_threads=1, verbose=False, type_k=0, type_v=0
    )
    listener = socket.create_server(("127.0.0.1", 0))
    application = app.create_app(server_settings=settings.ServerSettings(), model_settings=[model])
    server = uvicorn.Server(uvicorn.Config(application, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        certify(tmp_path / "a", url, server_numbers="exact", output=tmp_path / "out")
        found = verdicts(tmp_path / "out")
        assert found["token ids"] == found["log probabilities"] == found["greedy text"] == "same"
        with pytest.raises(CertificateError, match="log probabilities, KL divergence"):
            certify(make_form("b", change=perturb), url, server_numbers="exact")
    finally:
        server.should_exit = True
        thread.join()


def test_servers_that_are_not_there_or_stand_first_are_refused(make_form: MakeForm) -> None:
    with pytest.raises(LeveretError, match=r"no answer from http://127\.0\.0\.1:9/v1/models"):
        certify(make_form("a"), "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="name a form before it"):
        certify("http://127.0.0.1:9/v1", make_form("a"))
