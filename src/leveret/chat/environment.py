"""The sandboxed Jinja environment in which chat templates run.

A template comes with a model from the internet, so it runs in Jinja's immutable sandbox: it can read what it is given
and nothing else. Its dialect is the one `transformers` defined and every published template is written for:
`trim_blocks` and `lstrip_blocks` on, `raise_exception`, `strftime_now`, a `tojson` that does not escape for HTML, loop
controls, and the block `{% generation %}...{% endgeneration %}` around what the model itself writes.

The generation block is how a template says what to train on. Here it leaves two marks in the output, around its text
(marks.py).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from leveret.chat.marks import Marks
from leveret.errors import TemplateError

MARKS_VARIABLE = "leveret_marks"
"""The template variable that carries the marks of this rendering to the generation block."""


class GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: what the model writes, and so what training teaches."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the block into a call of `_marked` with the rendering's variables and the block's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, context: Context, caller: Callable[[], str]) -> str:
        marks: Marks = context[MARKS_VARIABLE]
        return f"{marks.begin}{caller()}{marks.end}"


def compile_template(source: str, name: str) -> jinja2.Template:
    """Compile a chat template; TemplateError with the line if it is not valid Jinja."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"chat template {name!r}, line {error.lineno}: {error.message}") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
