"""`leveret chat` and `leveret generate`, scripted through a pipe on a tiny random model."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from leveret.chat.messages import ToolCall
from leveret.chat.template import builtin_template
from leveret.cli.chat import describe_call, run
from leveret.cli.chat_config import ChatConfig
from leveret.cli.generate import run as generate
from leveret.cli.generate_config import GenerateConfig
from leveret.console import Console
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.train import train_byte_bpe
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
    assert "/reset" in out and "my_own(on)  Mine." in out
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


def test_a_model_that_cannot_chat_says_so_before_anything_is_typed(model_dir: Path, tmp_path: Path) -> None:
    for file in model_dir.iterdir():
        if file.name not in ("chat_template.jinja", "tools.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RequestError, match="no chat template"):
        run(ChatConfig(model=str(tmp_path)), Console())


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
