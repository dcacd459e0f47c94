"""What an Ollama Modelfile says is what the chat template writes."""

from __future__ import annotations

import pytest

from leveret.chat.messages import Message
from leveret.chat.template import BUILTIN_NAMES, ChatTemplate, builtin_template
from leveret.errors import TemplateError
from leveret.export.ollama import go_template, learn_pieces, modelfile

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_pieces_learnt_from_a_template_write_conversations_as_it_does(name: str) -> None:
    template = builtin_template(name)
    pieces = learn_pieces(template, TOKENS)
    turns = [("user", "1\n"), ("assistant", "二"), ("user", "🐇"), ("assistant", "4"), ("user", "5")]
    messages = [Message(role, content) for role, content in turns]
    assert pieces.write(turns) == template.render(messages, add_generation_prompt=True, variables=TOKENS).text


def test_a_template_that_does_more_than_turns_is_refused() -> None:
    counting = "{% for m in messages %}[{{ messages | length }}]{{ m.content }}{% endfor %}"
    with pytest.raises(TemplateError, match="does more than"):
        learn_pieces(ChatTemplate(counting), {})
    shouting = "{% for m in messages %}{{ m.content | length }}{% endfor %}"
    with pytest.raises(TemplateError, match="changes what a turn says"):
        learn_pieces(ChatTemplate(shouting), {})


def test_the_go_template_of_chatml() -> None:
    pieces = learn_pieces(builtin_template("chatml"), {})
    assert go_template(pieces).splitlines() == [
        '{{- $last := "" }}{{- range .Messages }}',
        '{{- if eq .Role "system" }}',
        '{{- if eq $last "" }}{{ "<|im_start|>system\\n" }}',
        "{{- end }}{{ .Content }}",
        '{{- else if eq .Role "user" }}',
        '{{- if eq $last "" }}{{ "<|im_start|>user\\n" }}',
        '{{- else if eq $last "assistant" }}{{ "<|im_end|>\\n<|im_start|>user\\n" }}',
        '{{- else if eq $last "system" }}{{ "<|im_end|>\\n<|im_start|>user\\n" }}',
        "{{- end }}{{ .Content }}",
        '{{- else if eq .Role "assistant" }}',
        '{{- if eq $last "user" }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}',
        "{{- end }}{{ .Content }}",
        "{{- end }}{{- $last = .Role }}",
        '{{- end }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}',
    ]


def test_a_modelfile_names_the_file_the_stops_and_the_sampling() -> None:
    text = modelfile("m.gguf", "{{ .Prompt }}", ["<|im_end|>", '"'], {"temperature": 0.7, "num_ctx": 64})
    assert text.splitlines() == [
        "FROM ./m.gguf",
        'TEMPLATE """{{ .Prompt }}"""',
        "PARAMETER temperature 0.7",
        "PARAMETER num_ctx 64",
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "\\""',
    ]
