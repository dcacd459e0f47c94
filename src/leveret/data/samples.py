"""Conversations to fine-tuning samples, by the one route that serving takes too."""

from __future__ import annotations

from leveret.chat.template import ChatTemplate
from leveret.data.examples import Conversation
from leveret.data.packing import Sample
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer


def render_sample(tokenizer: Tokenizer, template: ChatTemplate, conversation: Conversation) -> Sample:
    """The ids of a conversation and which of them are trained: each reply of the assistant with its stop token.

    TemplateError with the conversation's place if the template refuses it, or does not say what to train on.
    """
    if not template.trains:
        raise TemplateError(
            f"chat template {template.name!r} does not say what the model writes, so nothing would be trained",
            hint="put {% generation %} and {% endgeneration %} around the assistant's content and its stop token",
        )
    try:
        encoded = template.encode(tokenizer, conversation.messages, tools=conversation.tools)
    except TemplateError as error:
        raise TemplateError(f"{conversation.key}: {error.message}", hint=error.hint) from error
    return Sample(ids=encoded.ids, mask=encoded.mask, key=conversation.key)
