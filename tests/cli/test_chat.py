"""`leveret chat` and `leveret generate`, scripted through a pipe on a tiny random model."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from leveret.chat.messages import ToolCall
from leveret.chat.template import builtin_template
from leveret.cli.chat import run
from leveret.cli.chat_config import ChatConfig
from leveret.cli.chat_session import Session, stopping
from leveret.cli.generate import run as generate
from leveret.cli.generate_config import GenerateConfig
from leveret.cli.main import main
from leveret.console import Console
from leveret.engine.jobs import Job
from leveret.engine.reply import Delta
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.train import train_byte_bpe
from leveret.tools.call_text import describe_call
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import Parameter, Tool, ToolSet
from leveret.weights.save import save_model

TOOLS = ToolSet(
    [
        Tool(name="set_timer", parameters=(Parameter(name="minutes", type="integer", minimum=1, maximum=60),)),
        Tool(name="my_own", description="Mine.", parameters=(Parameter(name="on", type="boolean"),)),
    ]
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "phone"
    template = builtin_template("hare")
    tokenizer = train_byte_bpe(
        ["Set a timer for five minutes"] * 3,
        vocab_size=320,
        special_tokens=["</s>", *template.special_tokens, *FunctionalDialect(TOOLS).tokens],
        eos_token="</s>",
        chat_template=template.source,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=256, initializer_range=0.3, **sizes)
    model = Decoder(config)
    init_weights(model, 7)
    tokenizer.save(directory)
    save_model(model, directory)
    TOOLS.save(directory)
    return directory


def talk(
    script: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **keys: object
) -> tuple[str, str, int]:
    """What a scripted session puts on the two streams, and how many answers it counted."""
    monkeypatch.setattr("sys.stdin", io.StringIO(script))
    result = run(ChatConfig(model=str(model_dir), **keys), Console())
    shown = capsys.readouterr()
    return shown.out, shown.err, result.summary["answers"]


def test_a_piped_session_prints_the_answers_and_nothing_else(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"tools": False, "max_tokens": 12}
    out, _, answers = talk("Hi\n\nAgain\n", model_dir, monkeypatch, capsys, **keys)
    model = TextModel.load(model_dir)
    first = model.chat([{"role": "user", "content": "Hi"}], max_tokens=12).content
    turns = [("user", "Hi"), ("assistant", first), ("user", "Again")]
    second = model.chat([{"role": role, "content": content} for role, content in turns], max_tokens=12).content
    cut_off = " ... (cut off at max_tokens)"
    assert out.replace(cut_off, "") == f"{first}\n{second}\n" and answers == 2


def test_tools_are_called_by_default_and_each_line_stands_alone(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _, answers = talk("Set a timer\nSet a timer\n", model_dir, monkeypatch, capsys)
    half = len(out) // 2
    assert answers == 2 and out[:half] == out[half:]
    calls = TextModel.load(model_dir).call_tools(["Set a timer"])[0]
    assert calls is not None
    assert out[:half].rstrip("\n") == ("\n".join(map(describe_call, calls)) or "(no tool fits)")


def test_commands_change_the_session(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "/help\n/tools\n/tools off\nHi\n/reset\nHi\n/system Be brief.\nHi\n/nothing\n/exit\nnever\n"
    out, err, answers = talk(script, model_dir, monkeypatch, capsys, max_tokens=8)
    assert answers == 3
    assert "/clear" in out and "my_own(on)  Mine." in out
    assert "answers in text" in err and "there is no command /nothing" in err
    model = TextModel.load(model_dir)
    user = {"role": "user", "content": "Hi"}
    plain = model.chat([user], max_tokens=8).content
    brief = model.chat([{"role": "system", "content": "Be brief."}, user], max_tokens=8).content
    assert out.count(plain) >= 2 and brief in out


def test_an_outgrown_conversation_forgets_its_oldest_turns(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"tools": False, "max_tokens": 40}
    _, err, answers = talk("Set a timer for five minutes\n" * 6, model_dir, monkeypatch, capsys, **keys)
    assert answers == 6 and "its oldest turn is forgotten" in err
    _, err, answers = talk("x " * 400 + "\nHi\n", model_dir, monkeypatch, capsys, **keys)
    assert answers == 1 and "context holds 256" in err


def test_a_pipe_with_a_message_that_cannot_be_answered_ends_with_an_error(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for script, code, words in (
        ("x " * 400 + "\nHi\n", 1, "1 message was not answered"),
        (f"{'x ' * 400}\n" * 2, 1, "2 messages were"),
        ("Hi\n", 0, ""),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(script))
        assert main(["chat", str(model_dir), "tools=false", "max_tokens=4"]) == code
        assert words in capsys.readouterr().err


@pytest.fixture
def base_dir(model_dir: Path, tmp_path: Path) -> Path:
    for file in model_dir.iterdir():
        if file.name not in ("chat_template.jinja", "tools.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_model_that_cannot_chat_says_so_when_it_is_asked_to(base_dir: Path) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        run(ChatConfig(model=str(base_dir), mode="chat"), Console())


def test_a_base_model_continues_what_is_typed(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _, answers = talk("Set a\nSet a\n", base_dir, monkeypatch, capsys, max_tokens=6)
    whole = TextModel.load(base_dir).generate("Set a", max_tokens=6)
    assert answers == 2 and out == f"{whole} ... (cut off at max_tokens)\n" * 2


def test_retry_answers_the_last_message_again_and_keeps_the_turns_before(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.jsonl"
    script = f"/retry\nHi\nAgain\n/set temperature=3 seed=5\n/retry\n/save {file}\n"
    out, err, answers = talk(script, model_dir, monkeypatch, capsys, tools=False, max_tokens=8)
    messages = json.loads(file.read_text("utf-8"))["messages"]
    assert answers == 3 and "nothing was asked yet" in err
    assert [each["role"] for each in messages] == ["user", "assistant"] * 2
    model = TextModel.load(model_dir)
    expected = model.chat(messages[:3], max_tokens=8, temperature=3.0, seed=5).content
    assert messages[3]["content"] == expected and out.count(expected) == 1


def test_set_takes_sampling_keys_and_refuses_the_rest(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "/set\n/set temprature=1\n/set top_p=7\n/set max_tokens=3 stop=Q\nHi\n/set max_tokens= stop=\n/set\n"
    _, err, answers = talk(script, model_dir, monkeypatch, capsys, tools=False)
    assert "sampling: as the model says" in err and "did you mean temperature?" in err
    assert "top_p is 7.0" in err and "sampling: max_tokens=3, stop=['Q']" in err and answers == 1
    assert err.count("as the model says") == 3


def test_a_saved_conversation_goes_on_as_if_it_had_not_ended(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, keys = tmp_path / "a folder" / "talk.jsonl", {"tools": False, "max_tokens": 8}
    whole, *_ = talk("/system Be brief.\nHi\nAgain\n", model_dir, monkeypatch, capsys, **keys)
    first, *_ = talk(f"/system Be brief.\nHi\n/save {file}\n", model_dir, monkeypatch, capsys, **keys)
    second, *_ = talk(f"/load {file}\nAgain\n", model_dir, monkeypatch, capsys, **keys)
    assert first + second == whole
    file.write_text("[1]\n")
    _, err, _ = talk(f"/load {file}\n/load {file}x\n/save\n", model_dir, monkeypatch, capsys, **keys)
    assert err.count("holds no conversation") == 2 and "/save takes a file" in err
    _, err, _ = talk(f"/save {tmp_path}\n", model_dir, monkeypatch, capsys, **keys)
    assert f"{tmp_path} cannot be written: Is a directory" in err.replace("\n", " ")


def test_ctrl_c_stops_the_answer_and_not_the_program(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, file = TextModel.load(model_dir), tmp_path / "talk.jsonl"
    session = Session(model, ChatConfig(model="phone", tools=False, max_tokens=100), Console())
    deltas, signals = model.deltas, 1

    def interrupted(job: Job) -> Iterator[Delta]:
        for place, delta in enumerate(deltas(job)):
            yield delta
            for _ in range(signals if place == 2 else 0):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(model, "deltas", interrupted)
    before = signal.getsignal(signal.SIGINT)
    session.handle("Hi")
    assert signal.getsignal(signal.SIGINT) is before
    out = capsys.readouterr().out
    session.handle(f"/save {file}")
    said = json.loads(file.read_text("utf-8"))["messages"][1]["content"]
    assert out == f"{said} (stopped)\n" and session.handle("Again") and session.num_answers == 2
    whole = model.chat([{"role": "user", "content": "Hi"}], max_tokens=100).content
    assert 0 < len(said) < len(whole) and whole.startswith(said)
    capsys.readouterr()
    session.handle("/clear")
    signals = 2  # the second one does not wait for the next token
    session.handle("Hi")
    assert said.startswith(capsys.readouterr().out.removesuffix(" (stopped)\n"))


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stopping() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        signal.raise_signal(signal.SIGINT)


def test_calls_are_shown_with_a_dry_run_where_a_phone_has_an_intent() -> None:
    timer = describe_call(ToolCall("set_timer", {"minutes": 5}))
    assert timer.startswith("set_timer(minutes=5)\n  dry run: adb shell am start -a ")
    assert describe_call(ToolCall("my_own", {"on": True})) == "my_own(on=true)"
    message = describe_call(ToolCall("send_text_message", {"name": "小明", "message": "晚点到"}))
    assert "小明" in message and "confirmed by the user" in message


def test_generate_prints_the_continuation_only(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GenerateConfig(model=str(model_dir), prompt="Set a", max_tokens=9, output=tmp_path / "out")
    generate(config, Console())
    whole = TextModel.load(model_dir).generate("Set a", max_tokens=9)
    assert capsys.readouterr().out == whole + "\n"
    assert (tmp_path / "out" / "generated.txt").read_text("utf-8") == whole
