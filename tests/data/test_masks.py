"""Label masks by name, against arrays written by hand."""

from __future__ import annotations

import pytest

from leveret.chat.firefly import template_from_firefly
from leveret.chat.messages import Message
from leveret.chat.template import BUILTIN_NAMES, ChatTemplate, builtin_template
from leveret.data.examples import Conversation
from leveret.data.masks import Labelled, Mask, labelled
from leveret.data.samples import render_sample
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe

ASK, SAY = Message("user", "hi"), Message("assistant", "yes")
AGAIN, MORE = Message("user", "why"), Message("assistant", "野")
SILENT = Message("assistant", "yes", trained=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = [token for name in BUILTIN_NAMES for token in builtin_template(name).special_tokens]
    return train_byte_bpe(
        ["hi why yes hi why yes 野 You are a helpful assistant. system user"] * 3,
        vocab_size=360, special_tokens=["<eos>", *dict.fromkeys(special)], eos_token="<eos>",
    )  # fmt: skip


def label(tokenizer: Tokenizer, template: ChatTemplate, mask: Mask, *messages: Message) -> Labelled:
    return labelled(tokenizer, template, Conversation(messages=messages, key="x:1"), mask)


def written(tokenizer: Tokenizer, found: Labelled) -> list[tuple[str, str | None]]:
    """Each token with what it teaches."""
    labels = found.ids if found.labels is None else found.labels
    return [
        (tokenizer.decode([token]), tokenizer.decode([target]) if trained else None)
        for token, target, trained in zip(found.ids, labels, found.mask, strict=True)
    ]


def trained_text(tokenizer: Tokenizer, found: Labelled) -> str:
    return tokenizer.decode([token for token, trained in zip(found.ids, found.mask, strict=True) if trained])


def test_lingowhale_teaches_the_end_token_at_each_user_marker_after_a_reply(tokenizer: Tokenizer) -> None:
    found = label(tokenizer, builtin_template("lingowhale"), "lingowhale", ASK, SAY, AGAIN, MORE)
    assert written(tokenizer, found) == [
        ("<!!USER!!>", None), ("hi", None),
        ("<!!ASSISTANT!!>", None), ("yes", "yes"),
        ("<!!USER!!>", "<!!EOS!!>"), ("why", None),
        ("<!!ASSISTANT!!>", None), ("野", "野"), ("<!!EOS!!>", "<!!EOS!!>"),
    ]  # fmt: skip


def test_lingowhale_teaches_the_end_token_after_an_empty_reply_too(tokenizer: Tokenizer) -> None:
    found = label(tokenizer, builtin_template("lingowhale"), "lingowhale", ASK, Message("assistant", ""), AGAIN, MORE)
    assert [target for _, target in written(tokenizer, found) if target] == ["<!!EOS!!>", "野", "<!!EOS!!>"]


def test_lingowhale_leaves_out_the_marker_of_a_reply_that_is_left_out(tokenizer: Tokenizer) -> None:
    found = label(tokenizer, builtin_template("lingowhale"), "lingowhale", ASK, SILENT, AGAIN, MORE)
    assert [target for _, target in written(tokenizer, found) if target] == ["野", "<!!EOS!!>"]


@pytest.mark.parametrize("name", ["chatml", "hare", "aquila"])
def test_lingowhale_refuses_templates_without_a_marker_of_the_user(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(TemplateError, match="does not fit the mask of LingoWhale"):
        label(tokenizer, builtin_template(name), "lingowhale", ASK, SAY)


@pytest.mark.parametrize("mask", ["assistant", "aquila"])
def test_aquila_trains_answers_and_their_stops(tokenizer: Tokenizer, mask: Mask) -> None:
    found = label(tokenizer, builtin_template("aquila-v1"), mask, ASK, SAY, AGAIN, MORE)
    assert written(tokenizer, found) == [
        ("<|startofpiece|>", None), ("hi", None), ("<|endofpiece|>", None), ("yes", "yes"), ("</s>", "</s>"),
        ("<|startofpiece|>", None), ("why", None), ("<|endofpiece|>", None), ("野", "野"), ("</s>", "</s>"),
    ]  # fmt: skip


def test_firefly_trains_whole_assistant_formats_of_stripped_contents(tokenizer: Tokenizer) -> None:
    template = template_from_firefly(
        template_name="x", system_format="<round_start>{content}\n", user_format="{content}\n<round_start>",
        assistant_format="{content}<round_end>\n", system="hi", stop_word="<round_end>",
    )  # fmt: skip
    asked = Message("user", " hi ")
    found = label(tokenizer, template, "firefly", asked, Message("assistant", "yes \n"), AGAIN, MORE)
    assert written(tokenizer, found) == [
        ("<round_start>", None), ("hi", None), ("\n", None),
        ("hi", None), ("\n", None), ("<round_start>", None),
        ("yes", "yes"), ("<round_end>", "<round_end>"), ("\n", "\n"),
        ("why", None), ("\n", None), ("<round_start>", None),
        ("野", "野"), ("<round_end>", "<round_end>"), ("\n", "\n"),
    ]  # fmt: skip


def test_firefly_tokenizes_each_segment_alone(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}"
        "{% else %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    halves = (Message("user", "w"), Message("assistant", "hy"))
    assert label(tokenizer, template, "assistant", *halves).ids == tokenizer.encode("why")
    assert label(tokenizer, template, "firefly", *halves).ids == tokenizer.encode("w") + tokenizer.encode("hy")


def test_firefly_stops_at_the_stop_where_a_template_rewrites_what_stands_before(tokenizer: Tokenizer) -> None:
    found = label(tokenizer, builtin_template("lingowhale"), "firefly", ASK, SAY, AGAIN, MORE)
    assert trained_text(tokenizer, found) == "yes<!!USER!!>野<!!EOS!!>"


def test_full_trains_everything_but_a_reply_that_is_left_out(tokenizer: Tokenizer) -> None:
    template = builtin_template("hare")
    assert all(label(tokenizer, template, "full", ASK, SAY).mask)
    found = label(tokenizer, template, "full", ASK, SILENT, AGAIN, MORE)
    out = [token for token, trained in zip(found.ids, found.mask, strict=True) if not trained]
    assert tokenizer.decode(out) == "yes<round_end>"


def test_full_takes_or_refuses_what_is_said_of_messages_that_are_no_replies(tokenizer: Tokenizer) -> None:
    template = builtin_template("hare")
    assert all(label(tokenizer, template, "full", Message("user", "hi", trained=True), SAY).mask)
    with pytest.raises(TemplateError, match="under the mask full only an assistant's"):
        label(tokenizer, template, "full", Message("user", "hi", trained=False), SAY)
    assert any(label(tokenizer, template, "assistant", Message("user", "hi", trained=False), SAY).mask)


@pytest.mark.parametrize("mask", ["assistant", "aquila", "firefly"])
def test_messages_can_be_left_out_of_training(tokenizer: Tokenizer, mask: Mask) -> None:
    found = label(tokenizer, builtin_template("hare"), mask, ASK, SILENT, AGAIN, SAY)
    assert trained_text(tokenizer, found).strip() == "yes<round_end>"
    with pytest.raises(TemplateError, match="only an assistant's"):
        label(tokenizer, builtin_template("hare"), mask, Message("user", "x", trained=True), SAY)
    twice = ChatTemplate("{% generation %}a{% endgeneration %}{% generation %}b{% endgeneration %}")
    with pytest.raises(TemplateError, match="2 generation blocks for 1"):
        label(tokenizer, twice, mask, SILENT)


def test_text_that_looks_like_a_marker_teaches_nothing_special(tokenizer: Tokenizer) -> None:
    found = label(tokenizer, builtin_template("lingowhale"), "lingowhale", Message("user", "hi <!!USER!!>"), SAY)
    assert found.ids.count(tokenizer.id_of("<!!USER!!>")) == 1
    assert [target for _, target in written(tokenizer, found) if target] == ["yes", "<!!EOS!!>"]


def test_a_template_that_marks_no_reply_can_only_be_trained_whole(tokenizer: Tokenizer) -> None:
    plain = ChatTemplate("{{ messages[0].content }}")
    conversation = Conversation(messages=(ASK,), key="x:1")
    with pytest.raises(TemplateError, match="generation"):
        render_sample(tokenizer, plain, conversation)
    assert all(render_sample(tokenizer, plain, conversation, mask="full").mask)
