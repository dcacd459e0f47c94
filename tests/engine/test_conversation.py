"""A conversation remembers, forgets when it must, takes back, and goes to a file and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import builtin_template, template_for
from leveret.engine.conversation import Conversation
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.tokenizer.train import train_byte_bpe

from .conftest import TEXTS, random_decoder, tiny_config


@pytest.fixture(scope="module")
def model() -> TextModel:
    template = builtin_template("hare")
    tokenizer = train_byte_bpe(
        TEXTS,
        vocab_size=340,
        special_tokens=["</s>", *template.special_tokens],
        eos_token="</s>",
        chat_template=template.source,
    )
    decoder = random_decoder(tiny_config(tokenizer.vocab_size, max_position_embeddings=256))
    return TextModel(decoder, tokenizer, template=template_for(tokenizer))


def test_the_model_is_shown_all_turns_or_the_last_one(model: TextModel) -> None:
    talk, alone = Conversation(model=model, system="Be brief."), Conversation(model=model, remember=False)
    said = [talk.reply(text, max_tokens=5).content for text in ("Hi", "Again")]
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", said[0]), ("user", "Again")]
    messages = [Message(role, text) for role, text in turns]
    assert said[1] == model.chat(messages, max_tokens=5).content
    first, second = (alone.reply("Hi", max_tokens=5).content for _ in range(2))
    assert first == second and len(alone.turns) == 4


def test_a_base_conversation_is_one_text(model: TextModel) -> None:
    talk = Conversation(model=model, base=True, system="never shown")
    first = talk.reply("Once upon", max_tokens=5).content
    second = talk.reply(" a time", max_tokens=5).content
    assert first == model.generate("Once upon", max_tokens=5)
    assert second == model.generate(f"Once upon{first} a time", max_tokens=5)


def test_the_oldest_turns_are_forgotten_together_and_the_system_message_stays(model: TextModel) -> None:
    talk = Conversation(model=model, system="Be brief.")
    for number in range(8):
        talk.ask(f"{number} Set a timer for five minutes")
        talk.record("yes " * 12)
    talk.ask("last")
    job = talk.prepare(max_tokens=40)
    model.engine.check(job.request)
    shown = model.tokenizer.decode(list(job.request.prompt_ids))
    assert talk.forgotten > 0 and talk.turns[0].role == "user" and len(talk.turns) == 17 - talk.forgotten
    assert "Be brief." in shown and "0 Set" not in shown and shown.count("Set a timer") == len(talk.turns) // 2


def test_a_turn_that_is_plainly_too_long_is_forgotten_too(model: TextModel) -> None:
    talk = Conversation(model=model)
    talk.ask("x" * 100_000)
    talk.record("yes")
    with pytest.raises(RequestError, match="tokens at least") as caught:
        model.prepare_text("x" * 100_000)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    assert talk.reply("Hi", max_tokens=5).content == model.predict("Hi", max_tokens=5)
    assert talk.forgotten == 2


def test_an_answer_gets_room_when_nobody_said_how_long_it_may_be(model: TextModel) -> None:
    talk = Conversation(model=model)
    while True:
        talk.ask("Set a timer for five minutes")
        if talk.forgotten or talk.prepare().request.params.max_tokens < 64:
            break
        talk.record("yes")
        assert len(talk.turns) < 100
    assert talk.forgotten > 0 and talk.prepare().request.params.max_tokens >= 64


def test_what_cannot_be_answered_is_refused_and_nothing_is_forgotten_for_it(model: TextModel) -> None:
    talk = Conversation(model=model)
    talk.reply("Hi", max_tokens=5)
    with pytest.raises(RequestError, match="context holds 256"):
        talk.reply("x " * 400, max_tokens=5)
    with pytest.raises(RequestError, match="top_p"):
        talk.reply("Hi", top_p=3.0)
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] and talk.forgotten == 0


def test_an_answer_or_a_question_can_be_taken_back(model: TextModel) -> None:
    talk = Conversation(model=model)
    assert not talk.take_back_answer() and talk.take_back_question() is None
    first = talk.reply("Hi", max_tokens=5).content
    assert talk.take_back_answer() and talk.turns == [Message("user", "Hi")]
    assert model.run([talk.prepare(max_tokens=5)])[0].content == first
    assert talk.take_back_question() == "Hi" and talk.turns == []


def test_a_file_brings_everything_back(model: TextModel, tmp_path: Path) -> None:
    talk = Conversation(model=model, system="简短。")
    talk.ask("打开手电筒\n现在")
    talk.record("", [ToolCall("flashlight", {"on": True})])
    talk.save(tmp_path / "talk.jsonl")
    assert len((tmp_path / "talk.jsonl").read_text("utf-8").splitlines()) == 1
    other = Conversation(model=model, system="to be replaced")
    (tmp_path / "talk.jsonl").write_text((tmp_path / "talk.jsonl").read_text("utf-8"), "utf-8-sig")
    other.load(tmp_path / "talk.jsonl")
    assert other.turns == talk.turns and other.system == talk.system


@pytest.mark.parametrize("content", ["", "{}", '{"messages": 3}', '{"messages": [{"content": "x"}]}', "\x00"])
def test_a_file_without_a_conversation_is_refused_and_changes_nothing(
    model: TextModel, tmp_path: Path, content: str
) -> None:
    talk = Conversation(model=model, system="kept")
    talk.ask("kept")
    (tmp_path / "x").write_text(content)
    with pytest.raises(RequestError, match="holds no conversation"):
        talk.load(tmp_path / "x")
    assert talk.system == "kept" and json.dumps([turn.content for turn in talk.turns]) == '["kept"]'
