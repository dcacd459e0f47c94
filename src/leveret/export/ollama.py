"""An Ollama Modelfile: where the weights are, how a conversation is written, and what ends a reply.

Ollama writes conversations with a Go template, not with the Jinja template of the file. The Go template is not
translated from the Jinja one but learnt from it: what it writes before the first turn, between two turns of given
roles, and at the end, is found by rendering conversations. Then the pieces are put together again for other
conversations and compared with what the Jinja template writes. A template that is more than such pieces gets no
Modelfile, and a reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate
from leveret.engine.request import SamplingParams
from leveret.errors import TemplateError

Turns = Sequence[tuple[str, str]]
BEGINNING, END = "", "end"
CHECKED: tuple[Turns, ...] = (
    (("user", "Hi"),),
    (("user", "野兔在哪？"), ("assistant", "Over there."), ("user", "And now?")),
    (("system", "Be brief."), ("user", "Hi")),
    (("system", "只说中文。"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
)
"""Conversations that the pieces must write as the template does."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What stands between two turns, by their roles ("" before the first turn, "end" after the last)."""

    between: Mapping[tuple[str, str], str]

    def write(self, turns: Turns) -> str:
        """A conversation that ends with the user, ready for the reply."""
        text, before = "", BEGINNING
        for role, content in turns:
            text += self.between[before, role] + content
            before = role
        return text + self.between[before, END]


def learn_pieces(template: ChatTemplate, variables: Mapping[str, str]) -> Pieces:
    """What the template writes around turns; TemplateError if it is not made of such pieces.

    variables: the special tokens that it reads (`Tokenizer.special_tokens`).
    """
    between: dict[tuple[str, str], str] = {}
    for roles in (("user",), ("user", "assistant", "user"), ("system", "user")):
        turns = [(role, f"\ue000{number}\ue001") for number, role in enumerate(roles)]
        try:
            rest = _rendered(template, turns, variables)
        except TemplateError:
            if "system" not in roles:
                raise
            continue
        before = BEGINNING
        for role, content in turns:
            piece, found, rest = rest.partition(content)
            if not found:
                raise TemplateError("the chat template changes what a turn says or leaves it out")
            between.setdefault((before, role), piece)
            before = role
        between.setdefault((before, END), rest)
    pieces = Pieces(between=between)
    for checked in CHECKED:
        if all(step in between for step in _steps(checked)):
            expected = _rendered(template, checked, variables)
            if (got := pieces.write(checked)) != expected:
                raise TemplateError(f"the chat template does more than write turns one after another: "
                                    f"{expected[:120]!r} is not {got[:120]!r}")  # fmt: skip
    return pieces


def go_template(pieces: Pieces) -> str:
    """The pieces as a Go template over Ollama's `.Messages`."""
    lines = ['{{- $last := "" }}{{- range .Messages }}']
    for index, role in enumerate(("system", "user", "assistant")):
        steps = [(before, piece) for (before, now), piece in pieces.between.items() if now == role]
        if not steps:
            continue
        lines.append("{{- " + ("else " if index and len(lines) > 1 else "") + f'if eq .Role "{role}" }}}}')
        for number, (before, piece) in enumerate(steps):
            condition = f'{"else " if number else ""}if eq $last "{before}"'
            lines.append(f"{{{{- {condition} }}}}{{{{ {_quoted(piece)} }}}}")
        lines.append("{{- end }}{{ .Content }}")
    lines += ["{{- end }}{{- $last = .Role }}", "{{- end }}" + f"{{{{ {_quoted(pieces.between['user', END])} }}}}"]
    return "\n".join(lines)


def modelfile(file: str, template: str | None, stops: Sequence[str], parameters: Mapping[str, object]) -> str:
    """The text of a Modelfile."""
    lines = [f"FROM ./{file}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"


def ollama_sampling(params: SamplingParams) -> dict[str, float]:
    """How a model chooses tokens, in Ollama's parameters; none is left out, for its own defaults sample and filter."""
    said: dict[str, float] = {"temperature": params.temperature, "repeat_penalty": params.repetition_penalty}
    if params.temperature == 0:
        return said
    return said | {"top_k": params.top_k or 0, "top_p": params.top_p or 1.0, "min_p": params.min_p or 0.0}


def _rendered(template: ChatTemplate, turns: Turns, variables: Mapping[str, str]) -> str:
    messages = [Message(role=role, content=content) for role, content in turns]
    return template.render(messages, add_generation_prompt=True, variables=variables).text


def _steps(turns: Turns) -> list[tuple[str, str]]:
    roles = [BEGINNING, *(role for role, _ in turns), END]
    return list(itertools.pairwise(roles))


def _quoted(text: str) -> str:
    """A Go string constant: JSON's escapes are Go's too, and no three quotes in a row come of it."""
    return json.dumps(text, ensure_ascii=False)
