"""`leveret serve`: answers to `ask`, a server process that stops cleanly, clear errors."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from leveret.config import fingerprint
from leveret.console import Console
from leveret.engine.config import EngineConfig
from leveret.engine.text import TextModel
from leveret.errors import ConfigError, LeveretError, MissingExtra
from leveret.serve.client import Answer, ask
from leveret.serve.config import ServeConfig
from leveret.serve.models import configured
from leveret.serve.run import run, shown


def test_ask_answers_through_the_endpoint_and_stops(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["call Alice", "明天早上七点半叫我起床"]
    config = ServeConfig(model=str(model_dir), ask=questions, output=tmp_path / "answers")
    result = run(config, Console())
    shown = capsys.readouterr()
    assert all(f"> {question}" in shown.out for question in questions)
    assert f"leveret chat {model_dir}" in shown.err
    lines = [json.loads(line) for line in (tmp_path / "answers" / "answers.jsonl").read_text("utf-8").splitlines()]
    assert [line["query"] for line in lines] == questions and lines == result.summary["answers"]


def test_what_ask_prints_says_why_there_is_nothing(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(ServeConfig(model=str(model_dir), ask=["call Alice"], max_answer_tokens=1), Console())
    assert "(cut off)" in capsys.readouterr().out
    silent = Answer(content="", tool_calls=(), finish_reason="stop")
    assert (shown(silent, with_tools=True), shown(silent, with_tools=False)) == ("(no tool fits)", "(nothing)")


def test_a_template_may_begin_with_a_byte_order_mark(model: TextModel, model_dir: Path, tmp_path: Path) -> None:
    assert model.template is not None
    (tmp_path / "own.jinja").write_text(model.template.source, "utf-8-sig")
    served = configured(model, ServeConfig(model=str(model_dir), chat_template=tmp_path / "own.jinja"))
    assert served.template is not None and served.template.source == model.template.source


def test_the_client_reports_the_servers_refusal(url: str) -> None:
    with pytest.raises(LeveretError, match=r"answered 400.*tools\[0\]"):
        ask(url, "hi", tools=[{"type": "function"}])


@pytest.mark.slow
def test_the_process_prints_a_curl_line_that_works_and_stops_on_interrupt(model_dir: Path) -> None:
    command = [sys.executable, "-c", "from leveret.cli.main import main; raise SystemExit(main())", "serve"]
    process = subprocess.Popen(
        [*command, str(model_dir), "port=0"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline() for _ in range(2)]
        address, body = lines[1].strip().removeprefix("curl ").split(" -d ")
        deadline = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(address, data=body.strip("'").encode()) as response:
                    assert json.loads(response.read())["object"] == "chat.completion"
                break
            except ConnectionError:
                assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 0 and "stopped" in rest and "Traceback" not in rest
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_a_clear_error(model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{port}"):
            run(ServeConfig(model=str(model_dir), port=port), Console(quiet=True))


def test_without_the_extra_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, model_dir: Path) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"leveret\[serve\]"):
        run(ServeConfig(model=str(model_dir)), Console(quiet=True))


def test_the_config_binds_to_this_machine_hides_its_key_and_has_a_fingerprint() -> None:
    config = ServeConfig(model="x", api_key="secret")
    assert config.host == "127.0.0.1" and "secret" not in repr(config)
    assert fingerprint(config)


def test_what_cannot_be_served_is_an_error_before_an_address_is_named(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ({"adapter": ["poet=/nowhere"]}, {"max_model_len": 10**6}):
        with pytest.raises(ConfigError):
            run(ServeConfig(model=str(model_dir), port=0, **wrong), Console())
        assert "answers at" not in capsys.readouterr().err


def test_keys_of_our_engine_are_refused_by_name_before_another_program_loads_the_model() -> None:
    words = "engine.max_rows, max_model_len are for our own engine, and the backend is transformers: leave them out"
    with pytest.raises(ValueError, match=words):
        ServeConfig(model="x", backend="transformers", max_model_len=64, engine=EngineConfig(max_rows=2))
    with pytest.raises(ValueError, match=r"dtype is for our own engine, and the backend is llama\.cpp: leave it out"):
        ServeConfig(model="x.gguf", backend="llama.cpp", dtype="float32")
    ServeConfig(model="x", backend="vllm", max_model_len=64, engine=EngineConfig(cache_block_tokens=16))
