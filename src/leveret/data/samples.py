"""Conversations to fine-tuning samples, by the one route that serving takes too."""

from __future__ import annotations

from leveret.chat.template import ChatTemplate, EncodeText
from leveret.data.examples import Conversation
from leveret.data.masks import Mask, labelled, require_replies
from leveret.data.packing import Sample
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer


def render_sample(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversation: Conversation,
    *,
    mask: Mask = "assistant",
    encode_text: EncodeText | None = None,
) -> Sample:
    """The ids of a conversation and which of them are trained: by default each reply of the assistant with its stop.

    encode_text: reads the text in place of the tokenizer.

    TemplateError with the conversation's place if the template refuses it, or does not say what to train on.
    """
    require_replies(mask, template)
    try:
        found = labelled(tokenizer, template, conversation, mask, encode_text=encode_text)
    except TemplateError as error:
        raise TemplateError(f"{conversation.key}: {error.message}", hint=error.hint) from error
    return Sample(ids=found.ids, mask=found.mask, labels=found.labels, key=conversation.key)
