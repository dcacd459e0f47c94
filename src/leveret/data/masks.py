"""Label masks: which tokens of a written conversation are trained, and what each of them teaches, by name.

    assistant  each reply with the stop that ends it, which is what the template puts into its generation blocks
    aquila     the same labels, by the name of AquilaChat's recipe: every turn but the model's own is masked
    firefly    as Firefly does it (HARE's SFT): the reply and *all* that its format writes after it, so also a line end
               behind the stop token. Each formatted segment is tokenized alone, and contents lose outer white space
    lingowhale as LingoWhale-8B was tuned: the user's one-token marker stands where a reply ends, and is taught there
               as the end token, so that the model learns to stop and never to speak for the user
    full       every token, prompts too, as Chinese-Mixtral was tuned

A reply whose message says that it is not trained is left out under every name, with the marker that ends it. Of other
messages that can be said only where nothing of them is trained, and so not under `full`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate, Encoded, EncodeText
from leveret.data.examples import Conversation
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer

Mask = Literal["assistant", "aquila", "firefly", "lingowhale", "full"]
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A conversation as ids, which of them are trained, and what each teaches where that is not itself."""

    ids: list[int]
    mask: list[bool]
    labels: list[int] | None = None


def labelled(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversation: Conversation,
    mask: Mask,
    *,
    encode_text: EncodeText | None = None,
) -> Labelled:
    """Write a conversation and label it; TemplateError if the template does not fit it, or the mask."""
    if mask == "firefly":
        return _firefly(tokenizer, template, conversation, encode_text)
    messages = conversation.messages
    encoded = template.encode(tokenizer, messages, tools=conversation.tools, encode_text=encode_text)
    trained, silent = _told_apart(template, messages, encoded.replies, mask)
    if mask == "lingowhale":
        return _lingowhale(tokenizer, template, encoded, trained)
    if mask == "full":
        return Labelled(ids=encoded.ids, mask=[not out for out in encoded.marked(silent)])
    return Labelled(ids=encoded.ids, mask=encoded.marked(trained))


def check_fit(mask: Mask, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """TemplateError when this mask finds nothing to train in what the template writes, whatever is said."""
    require_replies(mask, template)
    if mask == "lingowhale":
        _user_marker(tokenizer, template)


def require_replies(mask: Mask, template: ChatTemplate) -> None:
    """TemplateError when the mask needs to know what the model writes, and the template does not say it."""
    if not template.trains and mask != "full":
        raise TemplateError(
            f"chat template {template.name!r} does not say what the model writes, so nothing would be trained",
            hint="put {% generation %} and {% endgeneration %} around the assistant's content and its stop token",
        )


def _told_apart(
    template: ChatTemplate, messages: Sequence[Message], replies: Sequence[Span], mask: Mask
) -> tuple[list[Span], list[Span]]:
    """The replies to train on and those only to read."""
    asked = {message.trained for message in messages if message.role != "assistant"}
    if mask == "full" and False in asked:
        raise TemplateError(
            "under the mask full only an assistant's message can be left out of training",
            hint="mask=assistant trains what the assistant says alone",
        )
    if mask != "full" and True in asked:
        raise TemplateError("only an assistant's message can be trained on", hint="mask=full trains all of them")
    said = [message for message in messages if message.role == "assistant"]
    if all(message.trained is not False for message in said):
        return list(replies), []
    if len(said) != len(replies):
        raise TemplateError(
            f"chat template {template.name!r} wrote {len(replies)} generation blocks for {len(said)} assistant "
            "messages, so a single message cannot be left out of training"
        )
    pairs = list(zip(replies, said, strict=True))
    return (
        [span for span, message in pairs if message.trained is not False],
        [span for span, message in pairs if message.trained is False],
    )


def _lingowhale(tokenizer: Tokenizer, template: ChatTemplate, encoded: Encoded, trained: Sequence[Span]) -> Labelled:
    """Replies, and the end token at each user marker that ends a trained one.

    The marker is the token that opens a conversation. The first one has nothing before it, so it cannot be predicted.
    """
    marker = _user_marker(tokenizer, template)
    stops = template.stop_ids(tokenizer)
    mask, labels = encoded.marked(trained), list(encoded.ids)
    for place, token in enumerate(encoded.ids):
        if token == marker:
            mask[place] = place > 0 and (mask[place] or mask[place - 1])
            labels[place] = stops[0]
    return Labelled(ids=encoded.ids, mask=mask, labels=labels)


def _user_marker(tokenizer: Tokenizer, template: ChatTemplate) -> int:
    opening = template.encode(tokenizer, [Message("user", "?")]).ids
    prompt = template.encode(tokenizer, [Message("user", "?")], add_generation_prompt=True).ids
    fits = tokenizer.is_special(opening[0]) and prompt.count(opening[0]) == 1
    if not fits or not template.stop_ids(tokenizer):
        raise TemplateError(
            f"chat template {template.name!r} does not fit the mask of LingoWhale, which needs a special token that "
            "opens the user's turns alone, and another that ends the last reply",
            hint="take the template `lingowhale`, or the mask `assistant`",
        )
    return opening[0]


def _firefly(
    tokenizer: Tokenizer, template: ChatTemplate, conversation: Conversation, encode_text: EncodeText | None
) -> Labelled:
    """Segments tokenized one by one; a reply's segment goes on to where the next message begins."""
    messages = [
        message if message.trusted else replace(message, content=message.content.strip())
        for message in conversation.messages
    ]
    variables = tokenizer.special_tokens
    whole = template.render(messages, tools=conversation.tools, variables=variables)
    borders = _borders(template, conversation, messages, whole.text, variables)
    said = [number for number, message in enumerate(messages, start=1) if message.role == "assistant"]
    ends = [borders.get(number, 0) for number in said] if len(said) == len(whole.spans) else [0] * len(whole.spans)
    segments = [(start, max(end, after)) for (start, end), after in zip(whole.spans, ends, strict=True)]
    cuts = {*borders.values(), *(place for segment in segments for place in segment)}
    encoded = template.encode(tokenizer, messages, tools=conversation.tools, encode_text=encode_text, cuts=cuts)
    trained, _ = _told_apart(template, messages, segments, mask="firefly")
    return Labelled(ids=encoded.ids, mask=encoded.marked(trained))


def _borders(
    template: ChatTemplate, conversation: Conversation, messages: Sequence[Message], text: str,
    variables: dict[str, str],
) -> dict[int, int]:  # fmt: skip
    """Where the first 1, 2, ... messages end in the text of all, as far as their own text begins that of all."""
    found = {}
    for count in range(1, len(messages)):
        try:
            part = template.render(messages[:count], tools=conversation.tools, variables=variables).text
        except TemplateError:
            continue
        if text.startswith(part):
            found[count] = len(part)
    return {**found, len(messages): len(text)}
