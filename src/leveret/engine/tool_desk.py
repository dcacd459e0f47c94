"""ToolDesk: for one model, what keeps an answer to its offer of tools and its form, and what reads it.

offer                     constraint                            answer
functional tokens only    CallConstraint (CallPolicy)           ToolAnswer
declared functions        grammar of text and calls             MixedAnswer
both, or with a form      MixedConstraint of the two            MixedAnswer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate
from leveret.engine.assembler import TextAssembler
from leveret.engine.call_answer import MixedAnswer, ToolAnswer
from leveret.engine.call_constraint import MixedConstraint
from leveret.engine.call_grammar import call_grammar, marker_ids
from leveret.engine.functional_reader import FunctionalReader
from leveret.engine.grammar import GrammarBook
from leveret.engine.grammar_constraint import GrammarConstraint
from leveret.engine.reply import Answer
from leveret.engine.request import Constraint, SamplingParams
from leveret.engine.structure import Structure
from leveret.engine.tool_calls import CallPolicy
from leveret.engine.tool_offer import Offer, Writing, conversation_for, writing_of
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.stream import StreamDecoder
from leveret.tools.constraint import CallConstraint
from leveret.tools.functional import FunctionalDialect
from leveret.tools.grammar import CallGrammar


class ToolDesk:
    """What is found once for all requests to a model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        dialect: FunctionalDialect | None,
        *,
        num_ids: int,
        stop_ids: Sequence[int],
    ) -> None:
        """`num_ids`: size of the model's vocabulary; `stop_ids`: what ends a turn by the model's own files."""
        self._tokenizer = tokenizer
        self._template = template
        self._dialect = dialect
        self._num_ids = num_ids
        self._stop_ids = tuple(stop_ids)

    @cached_property
    def grammars(self) -> GrammarBook:
        """The forms that answers were asked for, compiled once."""
        return GrammarBook(self._tokenizer, self._num_ids)

    def shown(
        self, offer: Offer, conversation: Sequence[Message]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """The messages of the prompt, and the declarations for the chat template if it lists them itself."""
        messages = conversation_for(offer, self._writing, conversation, self._dialect)
        native = offer.declared and self._writing.native
        return messages, [declared.entry for declared in offer.declared] if native else None

    def form(self, structure: Structure, params: SamplingParams, prefix: str) -> GrammarConstraint:
        """Keeps an answer to a form. RequestError when it cannot be compiled."""
        return self.grammars.constraint(structure, params.stop_ids, prefix=prefix, goes_on=params.ignore_eos)

    def silent_ids(self) -> list[int]:
        """The functional tokens, which are banned where nothing may be called."""
        return [] if self._dialect is None else [self._tokenizer.id_of(token) for token in self._dialect.tokens]

    def stop_ids(self, offer: Offer, params: SamplingParams) -> tuple[int, ...]:
        """What ends the answer: the request's stop ids, and the model's own where functional tokens are followed.

        Calls in functional tokens end by one of those and cannot go on without, whatever `ignore_eos` says.
        """
        own = self._call_grammar.stop_ids if offer.functional else ()
        return tuple(dict.fromkeys((*params.stop_ids, *own)))

    def answer(
        self,
        offer: Offer,
        params: SamplingParams,
        *,
        query: str,
        prefix: str = "",
        form: Structure | None = None,
        constrained: bool = True,
    ) -> tuple[Answer, Constraint | None]:
        """The answer to be, and what it is kept to.

        Args:
            query: what the user asked last; strings of functional calls are copied from it.
            prefix: what the chat template writes between its generation prompt and an answer.
            form: what an answer that calls nothing has.
        Raises RequestError when a schema cannot be compiled, naming its place.
        """
        calls = self._calls(offer, query) if offer.functional and constrained else None
        plain_form = form is None or offer.required
        if self._dialect is not None and not offer.declared and plain_form:
            answer = ToolAnswer(tokenizer=self._tokenizer, dialect=self._dialect)
            return answer, None if calls is None else _policy(calls, offer)
        constraint: Constraint | None = None
        written: GrammarConstraint | None = None
        if constrained:
            written = self._written(offer, params, prefix, form)
            constraint = written
            if calls is not None:
                constraint = MixedConstraint(calls, written, required=offer.required, parallel=offer.parallel)
        return self._mixed_answer(offer, params, prefix, written), constraint

    def _mixed_answer(
        self, offer: Offer, params: SamplingParams, prefix: str, written: GrammarConstraint | None
    ) -> MixedAnswer:
        shows_markers = bool(offer.declared and self._markers) or not params.skip_special_tokens
        functional = None
        if offer.functional and self._dialect is not None:
            functional = FunctionalReader(tokenizer=self._tokenizer, dialect=self._dialect)
        return MixedAnswer(
            decoder=StreamDecoder(self._tokenizer, skip_special=not shows_markers),
            assembler=TextAssembler(self._tokenizer, params.stop, prefix=prefix),
            written=self._writing.dialect.stream() if offer.declared else None,
            functional=functional,
            form=written,
        )

    def _written(self, offer: Offer, params: SamplingParams, prefix: str, form: Structure | None) -> GrammarConstraint:
        book = self.grammars
        if not offer.declared:
            assert form is not None
            return self.form(form, params, prefix)
        if form is not None and form.kind != "json":
            raise RequestError(
                f"{form.param} cannot be combined with tools; JSON can", param=form.param, code="invalid_value"
            )
        self._check_names(offer)
        parallel = offer.parallel and bool(params.stop_ids)  # where nothing can end an answer, its first call does
        grammar = call_grammar(
            replace(offer, parallel=parallel),
            self._writing.dialect,
            special_ids=self._tokenizer.special_ids,
            prefix=book.prefix + prefix,
            form=form,
        )
        parts = [declared.schema for declared in offer.declared] + ([] if form is None else [form])
        return book.constraint_from(grammar, params.stop_ids, parts=parts, tokens=self._markers, goes_on=True)

    def _check_names(self, offer: Offer) -> None:
        """No text can spell a special token, so such a function could be offered and never be called."""
        tokens = [token for token in self._tokenizer.special_ids if token]
        for declared in offer.declared:
            if any(token in declared.name for token in tokens):
                raise RequestError(
                    f"the tool's name {declared.name!r} holds a special token of the model",
                    param="tools",
                    code="invalid_value",
                )

    def _calls(self, offer: Offer, query: str) -> CallConstraint:
        grammar = self._call_grammar
        return CallConstraint(grammar.dialect, self._tokenizer, query=query, allowed=offer.functional, grammar=grammar)

    @cached_property
    def _writing(self) -> Writing:
        assert self._template is not None, "a model without a template does not chat"
        return writing_of(self._template)

    @cached_property
    def _markers(self) -> frozenset[int]:
        """The ids that written calls need and that are special tokens of the tokenizer."""
        return marker_ids(self._writing.dialect, self._tokenizer.special_ids)

    @cached_property
    def _call_grammar(self) -> CallGrammar:
        assert self._dialect is not None
        return CallGrammar(self._dialect, self._tokenizer, stop_ids=self._stop_ids or None)


def _policy(calls: CallConstraint, offer: Offer) -> Constraint:
    if offer.parallel and not offer.required:
        return calls
    return CallPolicy(
        calls,
        refusal_id=calls.grammar.no_tool_id if offer.required else None,
        last_id=None if offer.parallel else calls.grammar.end_id,
    )
