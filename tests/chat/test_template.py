"""What a template can and cannot do: headers, tools, masks, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import ChatTemplate, builtin_template, template_for
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer

USER, REPLY = Message("user", "hello"), Message("assistant", "yes")

TOOLS_TEMPLATE = """\
{%- if tools %}
{{- 'Tools: ' + tools | tojson(indent=2) + '\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- if message.tool_calls %}
{% generation %}
{% for call in message.tool_calls %}<{{ call.function.name }}|{{ call.function.arguments | tojson }}>{% endfor %}
{{ eos_token }}
{% endgeneration %}
    {%- else %}
{{ message.role }}: {{ message.content | trim }}
    {%- endif %}
{%- endfor %}
"""


def test_a_template_with_tools_and_loops_renders_as_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tools = [{"type": "function", "function": {"name": "看", "description": "a < b & 'c'", "parameters": {}}}]
    call = ToolCall("look", {"text": "<天>", "n": [1, None, True]}, id="1")
    messages = [USER, Message("skip", "x"), Message("assistant", "", tool_calls=(call,)), Message("user", "  trim  ")]
    dicts = [message.to_dict() for message in messages]
    ours = template_for(tmp_path).encode(tokenizer, messages, tools=tools)
    oracle = theirs.apply_chat_template(dicts, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.ids == oracle["input_ids"]
    assert ours.mask == [bool(flag) for flag in oracle["assistant_masks"]]
    assert tokenizer.eos_id in ours.ids


def test_what_was_thought_before_a_reply_is_written_as_transformers_writes_it(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{% generation %}"
        "{% if m.reasoning_content is string %}[{{ m.reasoning_content.strip() }}]{% endif %}"
        "{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [USER, Message("assistant", "yes", reasoning=" polite? ")]
    template = template_for(tmp_path)
    ours = template.encode(tokenizer, messages)
    assert template.writes_reasoning and ours.text == "user:helloassistant:[polite?]yes"
    oracle = theirs.apply_chat_template(
        [message.to_dict() for message in messages], return_dict=True, return_assistant_tokens_mask=True
    )
    assert ours.ids == oracle["input_ids"]
    assert ours.mask == [bool(flag) for flag in oracle["assistant_masks"]]
    typed = template.encode(tokenizer, [USER, Message("assistant", "yes", reasoning="<round_end>")])
    assert "[<round_end>]" in typed.text and not any(map(tokenizer.is_special, typed.ids))


def test_no_token_crosses_a_cut(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    message = Message("user", "hello <round_end>")
    assert len(template.encode(tokenizer, [message]).ids) < len("hello <round_end>")
    cut = template.encode(tokenizer, [message], cuts=(3,))
    assert cut.ids == tokenizer.encode("hel") + tokenizer.encode("lo <round_end>")
    assert cut.places(0, 3) == range(len(tokenizer.encode("hel")))


def test_the_last_character_of_a_reply_is_trained_whole(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ 'A: ' }}{% generation %}{{ messages[0].content }}{% endgeneration %}{{ '\n' }}")
    encoded = template.encode(tokenizer, [Message("assistant", "𠮷")])  # several tokens, as it was never seen
    assert tokenizer.decode([i for i, m in zip(encoded.ids, encoded.mask, strict=True) if m]).strip() == "𠮷"


def test_the_beginning_of_a_reply_is_known_from_the_template() -> None:
    assert builtin_template("aquila").reply_prefix == " "
    assert builtin_template("hare").reply_prefix == ""
    plain = ChatTemplate("{% for m in messages %}[{{ m.role }}] {{ m.content }} <stop>\n{% endfor %}")
    assert plain.stops == ("<stop>",)
    assert not plain.trains


def test_stop_ids_are_the_stops_that_are_tokens(tokenizer: Tokenizer) -> None:
    ids = builtin_template("aquila-v2").stop_ids(tokenizer)
    wanted = ("</s>", "<|endoftext|>", "<|startofpiece|>", "<|endofpiece|>")
    assert ids == tuple(tokenizer.id_of(token) for token in wanted)
    assert builtin_template("aquila-chat").stop_ids(tokenizer) == (tokenizer.id_of("</s>"),)


def test_rendering_leaves_the_messages_as_they_were(tokenizer: Tokenizer) -> None:
    call = ToolCall("f", {"a": ["<round_end>"]})
    messages = [USER, Message("assistant", "", tool_calls=(call,))]
    copy = [message.to_dict() for message in messages]
    template_of_calls = ChatTemplate("{{ messages[1].tool_calls | tojson }}")
    template_of_calls.encode(tokenizer, messages)
    assert [message.to_dict() for message in messages] == copy


def test_errors_name_the_template_and_the_way_out(tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="did you mean 'hare'"):
        builtin_template("hares")
    with pytest.raises(TemplateError, match=r"'custom', line 2"):
        ChatTemplate("x\n{% if %}")
    with pytest.raises(TemplateError, match="no luck"):
        ChatTemplate("{{ raise_exception('no luck') }}").render([USER])
    with pytest.raises(TemplateError, match="TypeError"):
        ChatTemplate("{{ messages + 1 }}").render([USER])
    with pytest.raises(TemplateError, match="would be lost"):
        builtin_template("hare").render([Message("assistant", "", tool_calls=(ToolCall("f", {}),))])
    with pytest.raises(TemplateError, match="no chat template"):
        template_for(tokenizer)
    with pytest.raises(TemplateError, match="leveret comment"):
        ChatTemplate('{#- leveret: {"stop": []} -#}')
    small = Tokenizer(tokenizer.to_json().replace("<round_end>", "<other>"))
    with pytest.raises(TemplateError, match="<round_end>"):
        builtin_template("hare").encode(small, [USER])


def test_a_template_that_writes_chinese_roles_gets_them_whatever_the_messages_say(tokenizer: Tokenizer) -> None:
    source = (
        "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt and messages[-1]['role'] != '助手' %}{{ '[助手]' }}{% endif %}"
    )
    messages = [Message("system", "s"), Message("user", "u"), Message("assistant", "a")]
    template = ChatTemplate(source)
    assert template.render(messages[:2], add_generation_prompt=True).text == "[系统]s\n[用户]u\n[助手]"
    assert template.render(messages, add_generation_prompt=True).text == "[系统]s\n[用户]u\n[助手]a\n"
    english = ChatTemplate(source.replace("助手", "assistant"))
    assert english.render(messages[:1]).text == "[system]s\n"
