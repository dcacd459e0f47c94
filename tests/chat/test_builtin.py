"""The built-in templates, character by character, and against transformers on the same Jinja."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from leveret.chat.messages import Message
from leveret.chat.template import BUILTIN_NAMES, builtin_template
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer

SYSTEM, USER, REPLY = Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yo")
AGAIN, LAST = Message("user", "再见👋"), Message("assistant", "")
AQUILA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
HARE = "<round_start>system\nYou are a helpful assistant.<round_end>\n"

# template -> one exchange without a system message; the same conversation's prompt; system, two turns, empty reply
GOLDEN = {
    "chatml": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\n再见👋<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n",
    ),
    "hare": (
        HARE + "<round_start>user\nHi<round_end>\n<round_start>assistant\nYo<round_end>\n",
        HARE + "<round_start>user\nHi<round_end>\n<round_start>assistant\n",
        "<round_start>system\nBe brief.<round_end>\n<round_start>user\nHi<round_end>\n"
        "<round_start>assistant\nYo<round_end>\n<round_start>user\n再见👋<round_end>\n"
        "<round_start>assistant\n<round_end>\n",
    ),
    "huozi": (
        "<|beginofutterance|>用户\nHi<|endofutterance|>\n<|beginofutterance|>助手\nYo<|endofutterance|>",
        "<|beginofutterance|>用户\nHi<|endofutterance|>\n<|beginofutterance|>助手\n",
        "<|beginofutterance|>系统\nBe brief.<|endofutterance|>\n<|beginofutterance|>用户\nHi<|endofutterance|>\n"
        "<|beginofutterance|>助手\nYo<|endofutterance|>\n<|beginofutterance|>用户\n再见👋<|endofutterance|>\n"
        "<|beginofutterance|>助手\n<|endofutterance|>",
    ),
    "aquila-chat": (
        AQUILA + "###Human: Hi###Assistant: Yo###",
        AQUILA + "###Human: Hi###Assistant:",
        "Be brief.###Human: Hi###Assistant: Yo###Human: 再见👋###Assistant: ###",
    ),
    "aquila-legacy": (
        AQUILA + "\n\n### Human: Hi\n### Assistant: Yo</s>",
        AQUILA + "\n\n### Human: Hi\n### Assistant:",
        "Be brief.\n\n### Human: Hi\n### Assistant: Yo</s>### Human: 再见👋\n### Assistant: </s>",
    ),
    "aquila": (
        AQUILA + "###Human: Hi###Assistant: Yo</s>",
        AQUILA + "###Human: Hi###Assistant:",
        "Be brief.###Human: Hi###Assistant: Yo</s>Human: 再见👋###Assistant: </s>",
    ),
    "aquila-v1": (
        "<|startofpiece|>Hi<|endofpiece|>Yo</s>",
        "<|startofpiece|>Hi<|endofpiece|>",
        "Be brief.\n\n<|startofpiece|>Hi<|endofpiece|>Yo</s><|startofpiece|>再见👋<|endofpiece|></s>",
    ),
    "aquila-v2": (
        AQUILA + "\n\n<|startofpiece|>Hi<|endofpiece|>Yo</s>",
        AQUILA + "\n\n<|startofpiece|>Hi<|endofpiece|>",
        "Be brief.\n\n<|startofpiece|>Hi<|endofpiece|>Yo</s><|startofpiece|>再见👋<|endofpiece|></s>",
    ),
    "lingowhale": (
        "<!!USER!!>Hi<!!ASSISTANT!!>Yo<!!EOS!!>",
        "<!!USER!!>Hi<!!ASSISTANT!!>",
        "<!!USER!!>Be brief.\n\nHi<!!ASSISTANT!!>Yo<!!USER!!>再见👋<!!ASSISTANT!!><!!EOS!!>",
    ),
}

STOPS = {
    "chatml": ("<|im_end|>",),
    "hare": ("<round_end>",),
    "huozi": ("<|endofutterance|>",),
    "aquila-chat": ("###", "</s>", "[UNK]"),
    "aquila-legacy": ("</s>", "[UNK]"),
    "aquila": ("</s>", "###", "[UNK]"),
    "aquila-v1": ("</s>", "<|endoftext|>"),
    "aquila-v2": ("</s>", "<|endoftext|>", "<|startofpiece|>", "<|endofpiece|>"),
    "lingowhale": ("<!!EOS!!>", "<!!USER!!>"),
}

CONVERSATIONS = [
    ([USER], True),
    ([USER], False),
    ([USER, REPLY], False),
    ([USER, REPLY], True),
    ([SYSTEM, USER, REPLY, AGAIN], True),
    ([SYSTEM, USER, REPLY, AGAIN, LAST], False),
]


def test_every_builtin_template_has_a_golden() -> None:
    assert set(GOLDEN) == set(STOPS) == set(BUILTIN_NAMES)


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_text_is_exactly_the_published_format(name: str) -> None:
    template = builtin_template(name)
    exchange, prompt, long = GOLDEN[name]
    assert template.render([USER, REPLY]).text == exchange
    assert template.render([USER], add_generation_prompt=True).text == prompt
    assert template.render([SYSTEM, USER, REPLY, AGAIN, LAST]).text == long


@pytest.mark.parametrize("name", ["aquila-v1", "lingowhale"])
def test_an_empty_system_message_adds_nothing_where_the_format_has_none(name: str) -> None:
    template = builtin_template(name)
    assert template.render([Message("system", ""), USER, REPLY]).text == GOLDEN[name][0]


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_stops_are_those_of_the_original(name: str) -> None:
    assert builtin_template(name).stops == STOPS[name]


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_training_covers_each_reply_and_its_stop_and_nothing_else(name: str, tokenizer: Tokenizer) -> None:
    template = builtin_template(name)
    encoded = template.encode(tokenizer, [SYSTEM, USER, REPLY, AGAIN, Message("assistant", "好的！")])
    runs = trained_runs(tokenizer, encoded.ids, encoded.mask)
    prefix = template.reply_prefix
    first_stop = "<!!USER!!>" if name == "lingowhale" else STOPS[name][0]
    assert runs == [f"{prefix}Yo{first_stop}", f"{prefix}好的！{STOPS[name][0]}"]


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_an_empty_reply_still_learns_to_stop(name: str, tokenizer: Tokenizer) -> None:
    template = builtin_template(name)
    encoded = template.encode(tokenizer, [USER, LAST])
    assert trained_runs(tokenizer, encoded.ids, encoded.mask) == [template.reply_prefix + STOPS[name][0]]


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_the_prompt_is_a_prefix_of_the_training_text(name: str, tokenizer: Tokenizer) -> None:
    template = builtin_template(name)
    prompt = template.encode(tokenizer, [SYSTEM, USER, REPLY, AGAIN], add_generation_prompt=True)
    whole = template.encode(tokenizer, [SYSTEM, USER, REPLY, AGAIN, Message("assistant", "Yes.")])
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert whole.mask[: len(prompt.ids)] == prompt.mask
    assert all(whole.mask[len(prompt.ids) : whole.ids.index(tokenizer.encode("Yes")[-1], len(prompt.ids))])


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_transformers_renders_and_encodes_the_saved_template_alike(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    template = builtin_template(name)
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template.source)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages, prompt in CONVERSATIONS:
        dicts = [message.to_dict() for message in messages]
        ours = template.encode(tokenizer, messages, add_generation_prompt=prompt)
        assert theirs.apply_chat_template(dicts, add_generation_prompt=prompt, tokenize=False) == (
            template.render(messages, add_generation_prompt=prompt).text
        )
        oracle = theirs.apply_chat_template(
            dicts, add_generation_prompt=prompt, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ours.ids == oracle["input_ids"]
        assert ours.mask == [bool(flag) for flag in oracle["assistant_masks"]]


def test_huozi_closes_a_last_reply_and_opens_none_when_asked_for_a_prompt() -> None:
    # as the published file does under trim_blocks: the newline between its two blocks is not part of the text
    text = builtin_template("huozi").render([USER, REPLY], add_generation_prompt=True).text
    assert text == GOLDEN["huozi"][0] + "\n"
    assert builtin_template("huozi").render([USER]).text == "<|beginofutterance|>用户\nHi"


def test_huozi_takes_roles_in_chinese_as_well() -> None:
    template = builtin_template("huozi")
    chinese = [dataclasses.replace(USER, role="用户"), dataclasses.replace(REPLY, role="助手")]
    assert template.render(chinese).text == template.render([USER, REPLY]).text


@pytest.mark.parametrize("name", ["aquila", "aquila-v1", "lingowhale"])
def test_roles_that_a_format_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(TemplateError, match="not tool"):
        builtin_template(name).render([USER, Message("tool", "4")])


@pytest.mark.parametrize("messages", [[SYSTEM], [SYSTEM, REPLY], [SYSTEM, REPLY, USER]])
def test_lingowhale_loses_no_system_message(messages: list[Message]) -> None:
    with pytest.raises(TemplateError, match="a system message before the first user message"):
        builtin_template("lingowhale").render(messages)


def trained_runs(tokenizer: Tokenizer, ids: list[int], mask: list[bool]) -> list[str]:
    """The text of each unbroken run of trained tokens."""
    runs: list[list[int]] = []
    for index, (token, trained) in enumerate(zip(ids, mask, strict=True)):
        if trained and (index == 0 or not mask[index - 1]):
            runs.append([])
        if trained:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]
