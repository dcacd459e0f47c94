"""`leveret tokenizer`: files that others read, a report, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leveret.chat.messages import Message
from leveret.chat.template import BUILTIN_NAMES, template_for
from leveret.config import parse_config
from leveret.console import Console
from leveret.data.readers import read_documents
from leveret.data.split import is_held_out
from leveret.errors import ConfigError, DataError
from leveret.tokenizer.files import Tokenizer
from leveret.vocabulary.config import TokenizerConfig
from leveret.vocabulary.fertility import language_of
from leveret.vocabulary.run import HELD_OUT, REPORT, run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [{"text": f"the hare number {number} runs over the small hill"} for number in range(150)]
    lines += [{"text": f"第{number}只野兔跑得很快，乌龟走得很慢"} for number in range(150)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    conversation = {"prompt": "call my mother zzzz", "completion": "calling zzzz"}
    (tmp_path / "sft.jsonl").write_text((json.dumps(conversation) + "\n") * 5)
    return tmp_path


def config(data: Path, **changes: object) -> TokenizerConfig:
    values = {"documents": [data / "data"], "output": data / "out", "vocab_size": 400, **changes}
    return parse_config(TokenizerConfig, values, source="test")


def test_the_saved_tokenizer_has_its_special_tokens_template_and_report(data: Path) -> None:
    result = run(config(data, template="hare", special_tokens=["<api_0>"]), Console(quiet=True))
    tokenizer = Tokenizer.load(data / "out")
    specials = ["<|endoftext|>", "<|padding|>", "<round_start>", "<round_end>", "<api_0>"]
    assert list(tokenizer.special_ids) == specials
    assert tokenizer.special_ids["<api_0>"] == tokenizer.vocab_size - 1
    assert tokenizer.vocab_size <= 400
    assert tokenizer.eos_id != tokenizer.pad_id
    assert template_for(tokenizer).encode(tokenizer, [Message("user", "hare")]).ids
    fertility = result.summary["fertility"]
    assert set(fertility) == {"english", "chinese"}
    assert fertility["english"]["bytes_per_token"] > 3
    assert json.loads((data / "out" / REPORT).read_text())["summary"] == result.summary


def test_there_is_text_to_measure_on_in_what_prepare_left_to_train_on(data: Path) -> None:
    left = [document for document in read_documents(data / "data") if not is_held_out(document.text, HELD_OUT)]
    lines = [json.dumps({"text": document.text}) + "\n" for document in left]
    (data / "data" / "texts.jsonl").write_text("".join(lines))
    result = run(config(data), Console(quiet=True))
    assert set(result.summary["fertility"]) == {"english", "chinese"}


def test_running_again_does_nothing_until_something_changes(data: Path) -> None:
    first = run(config(data), Console(quiet=True))
    path = data / "out" / "tokenizer.json"
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    assert run(config(data), Console(quiet=True)) == first
    assert path.stat().st_mtime_ns == time
    run(config(data, output=data / "other"), Console(quiet=True))
    assert (data / "other" / "tokenizer.json").read_bytes() == content
    (data / "data" / "more.txt").write_text("quite another text about tortoises " * 20)
    run(config(data), Console(quiet=True))
    assert path.read_bytes() != content


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"])
def test_a_file_that_is_gone_is_written_again(data: Path, name: str) -> None:
    run(config(data, template="hare"), Console(quiet=True))
    content = (data / "out" / name).read_bytes()
    (data / "out" / name).unlink()
    run(config(data, template="hare"), Console(quiet=True))
    assert (data / "out" / name).read_bytes() == content


def test_conversations_are_learned_from_as_well(data: Path) -> None:
    run(config(data, conversations=[data / "sft.jsonl"], vocab_size=800), Console(quiet=True))
    with_conversations = Tokenizer.load(data / "out")
    run(config(data, output=data / "without", vocab_size=800), Console(quiet=True))
    without = Tokenizer.load(data / "without")
    assert len(with_conversations.encode("calling zzzz")) < len(without.encode("calling zzzz"))


def test_no_more_than_max_bytes_are_read(data: Path) -> None:
    run(config(data, max_bytes=2000), Console(quiet=True))
    assert len(Tokenizer.load(data / "out").encode("野兔")) == 6


def test_a_first_text_longer_than_max_bytes_is_cut_and_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "long.txt").write_text("a hare, a hare, " * 500)
    run(config(data, documents=[data / "long.txt"], max_bytes=1000), Console())
    assert len(Tokenizer.load(data / "out").encode(" hare")) == 1
    assert "left out 1: the end of a text" in "".join(capsys.readouterr())


def test_nothing_of_an_earlier_tokenizer_stays(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = config(data, template="hare")
    run(first, Console(quiet=True))
    run(config(data, template=None), Console(quiet=True))
    assert Tokenizer.load(data / "out").chat_template is None
    run(first, Console(quiet=True))
    with monkeypatch.context() as killed:
        killed.setattr("leveret.vocabulary.run.atomic_write", lambda path, content: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):
            run(config(data, template=None), Console(quiet=True))
    run(first, Console(quiet=True))
    assert Tokenizer.load(data / "out").chat_template is not None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_file_is_made_again(data: Path, name: str) -> None:
    run(config(data), Console(quiet=True))
    whole = (data / "out" / name).read_bytes()
    (data / "out" / name).write_bytes(whole[: len(whole) // 2])
    run(config(data), Console(quiet=True))
    assert (data / "out" / name).read_bytes() == whole


def test_a_template_that_was_changed_by_hand_stays(data: Path) -> None:
    run(config(data), Console(quiet=True))
    (data / "out" / "chat_template.jinja").write_text("{# my own #}")
    run(config(data), Console(quiet=True))
    assert Tokenizer.load(data / "out").chat_template == "{# my own #}"


def test_an_output_among_the_texts_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="the next run would read"):
        run(config(data, output=data / "data" / "tokenizer"), Console(quiet=True))


def test_another_version_trains_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(data), Console(quiet=True))
    written = (data / "out" / REPORT).read_text()
    monkeypatch.setattr("leveret.vocabulary.run.VERSION", "0.0.0")
    run(config(data), Console(quiet=True))
    assert (data / "out" / REPORT).read_text() != written


def test_missing_and_empty_inputs_are_errors(data: Path) -> None:
    with pytest.raises(ConfigError, match="documents or conversations"):
        config(data, documents=[])
    with pytest.raises(DataError, match="no such file"):
        run(config(data, documents=[data / "nowhere"]), Console(quiet=True))
    (data / "empty").mkdir()
    with pytest.raises(DataError, match="no text to learn from"):
        run(config(data, documents=[data / "empty"]), Console(quiet=True))


def test_every_builtin_template_can_be_named(data: Path) -> None:
    assert [config(data, template=name).template for name in BUILTIN_NAMES] == list(BUILTIN_NAMES)


def test_languages_are_told_apart() -> None:
    assert language_of("hello world") == "english"
    assert language_of("你好啊，world") == "chinese"
    assert language_of("привет") is None
    assert language_of(" ") is None
    assert language_of("91-33=58") is None
