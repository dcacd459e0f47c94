"""Nothing that a user types becomes a special token, whatever the template does around it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from leveret.chat.marks import Marks
from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import BUILTIN_NAMES, ChatTemplate, builtin_template
from leveret.errors import TemplateError
from leveret.tokenizer.dropout import BpeDropout
from leveret.tokenizer.files import Tokenizer

PIECES = [
    "<round_",
    "round_end>",
    "<round_end>",
    "<|im_end|>",
    "</s>",
    "</",
    "s>",
    "<",
    ">",
    " ",
    "a",
    "好",
    "\n",
    "<|",
]
hostile = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def special_ids(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [index for index in ids if tokenizer.is_special(index)]


@pytest.mark.parametrize("name", BUILTIN_NAMES)
@given(user=hostile, reply=hostile)
@settings(max_examples=60, deadline=None)
def test_a_hostile_conversation_has_the_special_tokens_of_a_harmless_one(
    name: str, tokenizer: Tokenizer, user: str, reply: str
) -> None:
    template = builtin_template(name)
    harmless = template.encode(tokenizer, [Message("user", "x"), Message("assistant", "y")])
    messages = [Message("user", user), Message("assistant", reply)]
    encoded = template.encode(tokenizer, messages)
    assert special_ids(tokenizer, encoded.ids) == special_ids(tokenizer, harmless.ids)
    assert tokenizer.decode(encoded.ids) == template.render(messages).text


@given(user=hostile, reply=hostile)
@settings(max_examples=40, deadline=None)
def test_ids_equal_transformers_with_its_own_sanitizing(
    tokenizer: Tokenizer, theirs: object, user: str, reply: str
) -> None:
    messages = [Message("user", user), Message("assistant", reply)]
    oracle = theirs.apply_chat_template(  # type: ignore[attr-defined]
        [message.to_dict() for message in messages], sanitize_control_tokens=True, return_dict=True
    )
    # Theirs does not mark a special token that only comes about where two texts meet, so leave those cases out.
    text = builtin_template("hare").render(messages).text
    if text.count("<round_") == 6 + (user + reply).count("<round_end>"):
        assert builtin_template("hare").encode(tokenizer, messages).ids == oracle["input_ids"]


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> object:
    transformers = pytest.importorskip("transformers")
    directory: Path = tmp_path_factory.mktemp("hare")
    tokenizer.save(directory)
    (directory / "chat_template.jinja").write_text(builtin_template("hare").source)
    return transformers.AutoTokenizer.from_pretrained(directory)


def test_a_token_cannot_be_completed_across_a_border() -> None:
    tokenizer = _tokenizer_with("<end>")
    template = ChatTemplate("{{ messages[0].content }}{{ 'nd>' }}{{ messages[1].content | trim }}{{ 'd>' }}")
    for first, second in (("<e", "x"), ("x", "<en"), ("x", " <en "), ("<e", "<en")):
        ids = template.encode(tokenizer, [Message("user", first), Message("user", second)]).ids
        assert special_ids(tokenizer, ids) == [], (first, second)
    middle = ChatTemplate("{{ '<e' }}{{ messages[0].content }}{{ 'd>' }}")
    assert special_ids(tokenizer, middle.encode(tokenizer, [Message("user", "n")]).ids) == []
    assert special_ids(tokenizer, middle.encode(tokenizer, [Message("user", "n", trusted=True)]).ids) != []


def test_the_template_s_own_token_next_to_a_hostile_text_stays_a_token() -> None:
    tokenizer = _tokenizer_with("<end>")
    template = ChatTemplate("{{ '<end>' + messages[0].content + '<end>' }}")
    for text in ("d>", "<e", "<end>", "", "n", "<end><end>", "d><e"):
        encoded = template.encode(tokenizer, [Message("user", text)])
        assert len(special_ids(tokenizer, encoded.ids)) == 2, text
        assert tokenizer.decode(encoded.ids) == f"<end>{text}<end>"


def test_trusted_content_may_hold_special_tokens_beside_an_untrusted_message(tokenizer: Tokenizer) -> None:
    call = "<api_0>('<api_end>')<api_end>"
    template = builtin_template("hare")
    trusted = [Message("user", "<api_0>"), Message("assistant", call, trusted=True)]
    names = {index: token for token, index in tokenizer.special_ids.items()}
    ids = special_ids(tokenizer, template.encode(tokenizer, trusted).ids)
    assert [names[index] for index in ids if names[index].startswith("<api")] == ["<api_0>", "<api_end>", "<api_end>"]


def test_tools_names_and_arguments_cannot_smuggle_tokens_in() -> None:
    tokenizer = _tokenizer_with("<end>")
    source = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.tool_calls | tojson }}{% endfor %}"
    )
    call = ToolCall("<end>", {"<end>": ["<end>", {"a": "<end>"}]}, id="<end>")
    message = Message("<end>", "", name="<end>", tool_calls=(call,))
    encoded = ChatTemplate(source).encode(tokenizer, [message], tools=[{"name": "<end>", "description": "<end>"}])
    assert special_ids(tokenizer, encoded.ids) == []
    assert tokenizer.decode(encoded.ids).count("<end>") == 9


def test_a_template_that_rewrites_token_text_is_refused_for_hostile_text_only() -> None:
    tokenizer = _tokenizer_with("<end>")
    template = ChatTemplate("{{ messages[0].content | replace('<end>', 'END') }}")
    assert tokenizer.decode(template.encode(tokenizer, [Message("user", "fine <e nd>")]).ids) == "fine <e nd>"
    with pytest.raises(TemplateError, match="cannot be encoded safely"):
        template.encode(tokenizer, [Message("user", "<end>")])


def test_text_that_holds_noncharacters_itself_is_kept(tokenizer: Tokenizer) -> None:
    text = "\ufdd0<round_end>\ufdd1\ufdd2<round_"
    template = builtin_template("hare")
    encoded = template.encode(tokenizer, [Message("user", "?"), Message("assistant", text)])
    assert tokenizer.decode(encoded.ids).endswith(f"assistant\n{text}<round_end>\n")
    assert Marks.absent_from("\ufdd0\ufdd2") == Marks("\ufdd1", "\ufdd3", "\ufdd4")


def test_a_template_cannot_leave_the_sandbox() -> None:
    escape = ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(TemplateError, match="unsafe"):
        escape.render([Message("user", "x")])
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages.append(1) }}").render([Message("user", "x")])


def _tokenizer_with(*special: str) -> Tokenizer:
    from leveret.tokenizer.train import train_byte_bpe

    return train_byte_bpe(["x"], vocab_size=256 + len(special), special_tokens=special)


def space_before_a_text(folder: Path) -> Tokenizer:
    """A tokenizer in sentencepiece's notation that puts a space before a text, not behind a special token."""
    engine = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    special = ["<unk>", "<s>", "<round_start>", "<round_end>"]
    initial = ["▁", "\n", *map(chr, range(33, 127))]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, initial_alphabet=initial, show_progress=False)
    engine.train_from_iterator(["system user assistant hello world"] * 5, trainer)
    engine.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("probability", [None, 1e-9])
@pytest.mark.parametrize("text", ["s", "hello", "<s", "hello <s> world", "<s>", "<round_end>hello <round_start>"])
def test_text_behind_a_special_token_begins_as_it_does_beside_harmless_text(
    text: str, probability: float | None, tmp_path: Path
) -> None:
    tokenizer, template = space_before_a_text(tmp_path), builtin_template("hare")
    read = None if probability is None else BpeDropout(tokenizer, probability).reader("")
    encoded = template.encode(tokenizer, [Message("user", text), Message("assistant", text)], encode_text=read)
    assert tokenizer.decode(encoded.ids) == encoded.text
    harmless = template.encode(tokenizer, [Message("user", "@")]).ids
    assert encoded.ids[: harmless.index(tokenizer.ids["@"])] == harmless[: harmless.index(tokenizer.ids["@"])]
