"""Templates in Firefly's six fields."""

from __future__ import annotations

import pytest

from leveret.chat.firefly import template_from_firefly
from leveret.chat.messages import Message
from leveret.chat.template import builtin_template
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer

HARE = {
    "template_name": "hare",
    "system_format": "<round_start>system\n{content}<round_end>\n",
    "user_format": "<round_start>user\n{content}<round_end>\n<round_start>assistant\n",
    "assistant_format": "{content}<round_end>\n",
    "system": "You are a helpful assistant.",
    "stop_word": "<round_end>",
}
USER, REPLY = Message("user", "你好 \"'\\{content}"), Message("assistant", "{{ x }}")


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("head", [[], [Message("system", "Be brief.")]])
def test_the_six_fields_of_hare_give_the_builtin_template(
    head: list[Message], prompt: bool, tokenizer: Tokenizer
) -> None:
    ours, builtin = template_from_firefly(**HARE), builtin_template("hare")
    messages = [*head, USER, REPLY, USER] if prompt else [*head, USER, REPLY, USER, REPLY]
    assert ours.encode(tokenizer, messages, add_generation_prompt=prompt) == builtin.encode(
        tokenizer, messages, add_generation_prompt=prompt
    )
    assert ours.stops == builtin.stops


def test_a_template_without_a_system_format_leaves_system_messages_out() -> None:
    template = template_from_firefly(**{**HARE, "system_format": None})
    assert template.render([Message("system", "x"), USER]).text == template.render([USER]).text
    assert template.render([USER]).text.startswith("<round_start>user")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_format": "user"}, "user_format"),
        ({"assistant_format": "{content}"}, "stop word"),
    ],
)
def test_formats_that_cannot_work_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        template_from_firefly(**{**HARE, **change})
