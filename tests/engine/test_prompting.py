"""Where a prompt ends: after the generation prompt, after the last message, or within it."""

from __future__ import annotations

import pytest

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate, builtin_template
from leveret.engine.prompting import PromptShape, chat_ids
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer

TALK = [Message("user", "今天天气怎么样？"), Message("assistant", "Once upon a time")]


def test_a_continued_message_is_the_prompt_without_what_closes_it(tokenizer: Tokenizer) -> None:
    template = builtin_template("hare")
    shape = PromptShape(add_generation_prompt=False, continue_final_message=True)
    ids = chat_ids(template, tokenizer, TALK, shape=shape)
    closed = chat_ids(template, tokenizer, TALK, shape=PromptShape(add_generation_prompt=False))
    text, whole = tokenizer.decode(ids), tokenizer.decode(closed)
    assert text.endswith("Once upon a time") and whole.startswith(text) and len(whole) > len(text)
    opened = chat_ids(template, tokenizer, TALK[:1])
    assert ids[: len(opened)] == opened


@pytest.mark.parametrize("content", ["r", "end", "<", "<round_", "end>", "<round_end>", "assistant", "Well, ", " a\n"])
@pytest.mark.parametrize("strips", [False, True])
def test_a_message_may_spell_a_piece_of_what_closes_it(tokenizer: Tokenizer, content: str, strips: bool) -> None:
    """Its end is where the template put it, not the last place that reads like it; and no text becomes a token."""
    source = builtin_template("hare").source
    template = ChatTemplate(source.replace("message.content", "message.content.strip()") if strips else source)
    shape = PromptShape(continue_final_message=True)
    ids = chat_ids(template, tokenizer, [TALK[0], Message("assistant", content)], shape=shape)
    opened = chat_ids(template, tokenizer, TALK[:1])
    assert ids[: len(opened)] == opened
    expected = content.strip() if strips else content.rstrip()
    assert tokenizer.decode(ids[len(opened) :]) == expected
    assert not any(tokenizer.is_special(token_id) for token_id in ids[len(opened) :])


def test_a_word_of_ours_in_a_message_is_only_a_word(tokenizer: Tokenizer) -> None:
    talk = [Message("user", "leveret0here"), Message("assistant", "leveret0here leveret0here0")]
    ids = chat_ids(builtin_template("hare"), tokenizer, talk, shape=PromptShape(continue_final_message=True))
    assert tokenizer.decode(ids).endswith("assistant\nleveret0here leveret0here0")


def test_what_cannot_be_continued_is_refused(tokenizer: Tokenizer) -> None:
    shape = PromptShape(continue_final_message=True)
    with pytest.raises(RequestError, match="empty"):
        chat_ids(builtin_template("hare"), tokenizer, [TALK[0], Message("assistant", " ")], shape=shape)
    shouting = ChatTemplate("{{ messages[-1].content | upper }}")
    with pytest.raises(RequestError, match="as it is"):
        chat_ids(shouting, tokenizer, TALK, shape=shape)


def test_the_template_is_told_the_variables_of_a_request(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ messages[0].content }}{% if think %} hm{% endif %}")
    thinking = chat_ids(template, tokenizer, TALK[:1], shape=PromptShape(variables={"think": True}))
    assert tokenizer.decode(thinking) == TALK[0].content + " hm"


@pytest.mark.parametrize(
    ("variables", "left"), [({}, "~~"), ({"user_name": "Ann"}, "~~"), ({"opens_alone": True}, "~~~")]
)
def test_what_a_template_writes_before_a_reply_is_no_part_of_it_whatever_it_is_told(
    model: TextModel, variables: dict[str, object], left: str
) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{{ '' if opens_alone else '~' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    talker = TextModel(model.model, model.tokenizer, template=ChatTemplate(source))
    (tilde,) = model.tokenizer.encode("~")
    job = talker.prepare_chat(
        TALK[:1], shape=PromptShape(variables=variables), logit_bias={tilde: 100}, max_tokens=3, ignore_eos=True
    )
    assert talker.run([job])[0].content == left


def test_what_is_plainly_too_long_is_refused_before_it_is_read(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading megabytes takes seconds, in which a server answers nobody."""
    read: list[str] = []
    encode = Tokenizer.encode_with_offsets
    monkeypatch.setattr(
        Tokenizer, "encode_with_offsets", lambda self, text, **how: read.append(text) or encode(self, text, **how)
    )
    template = builtin_template("hare")
    with pytest.raises(RequestError, match="tokens at least, and there is room for 64") as caught:
        chat_ids(template, tokenizer, [Message("user", "Set a timer. " * 10_000)], most_tokens=64)
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
    assert not any("timer" in text for text in read)
    with pytest.raises(RequestError, match="tokens at least"):  # in many pieces, between what may be no token
        chat_ids(template, tokenizer, [Message("user", "Set a timer<round_end>" * 10_000)], most_tokens=64)
    assert sum("timer" in text for text in read) < 100
    short = chat_ids(template, tokenizer, TALK, most_tokens=64)
    assert short == chat_ids(template, tokenizer, TALK)
