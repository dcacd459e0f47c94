"""Chat templates from Firefly's six fields, the form in which HARE and others publish theirs.

    template_name, system_format, user_format, assistant_format, system, stop_word

Each format has `{content}` where the message goes; `user_format` ends with what opens the assistant's turn. The
fields become a Jinja template, so that from there on there is one kind. Because the opening belongs to the user's
format, it is written after every user message, with or without a generation prompt.
"""

from __future__ import annotations

import json

from leveret.chat.template import ChatTemplate
from leveret.errors import TemplateError

_SOURCE = """\
{{#- leveret: {header} -#}}
{{%- if messages and messages[0].role == 'system' -%}}
    {{{{- {system} -}}}}
{{%- else -%}}
    {{{{- {default_system} -}}}}
{{%- endif -%}}
{{%- for message in messages -%}}
    {{%- if message.role == 'user' -%}}
        {{{{- {user} -}}}}
    {{%- elif message.role == 'assistant' -%}}
        {before_reply}
        {{%- generation -%}}
            {{{{- {reply} -}}}}
        {{%- endgeneration -%}}
        {{{{- {after_reply} -}}}}
    {{%- elif not loop.first or message.role != 'system' -%}}
        {{{{- raise_exception('a Firefly template has no format for a message of the role ' + message.role) -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
"""


def template_from_firefly(
    *,
    template_name: str,
    system_format: str | None,
    user_format: str,
    assistant_format: str,
    system: str | None,
    stop_word: str,
) -> ChatTemplate:
    """The template that Firefly's `register_template` describes; TemplateError if a format does not fit.

    With no `system_format` a system message is left out, as Firefly does; with no `system` nothing stands for it.
    """
    for field, form in (("user_format", user_format), ("assistant_format", assistant_format)):
        if form.count("{content}") != 1:
            raise TemplateError(f"{field} of {template_name!r} must contain {{content}} once: {form!r}")
    before, _, after = assistant_format.partition("{content}")
    if not stop_word or stop_word not in after:
        raise TemplateError(
            f"assistant_format of {template_name!r} must have the stop word {stop_word!r} after {{content}}, "
            "or no reply would ever learn to end"
        )
    learned = after[: after.index(stop_word) + len(stop_word)]
    source = _SOURCE.format(
        header=json.dumps({"stops": [stop_word]}),
        system="''" if system_format is None else _expression(system_format, "messages[0].content"),
        default_system="''" if None in (system_format, system) else _expression(system_format or "", _text(system)),
        user=_expression(user_format, "message.content"),
        before_reply=f"{{{{- {_text(before)} -}}}}" if before else "",
        reply=_expression("{content}" + learned, "message.content"),
        after_reply=_text(after[len(learned) :]),
    )
    return ChatTemplate(source, name=template_name)


def _expression(form: str, content: str) -> str:
    """A format as a Jinja expression."""
    before, _, after = form.partition("{content}")
    return " + ".join([_text(before), content, _text(after)])


def _text(text: str | None) -> str:
    """A Jinja string literal."""
    return json.dumps(text or "", ensure_ascii=False)
