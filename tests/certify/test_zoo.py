"""The zoo holds what releases are known to break on, and every animal can be told from the others."""

from __future__ import annotations

import pytest

from leveret.certify.by_leveret import LeveretForm
from leveret.certify.form import Stops, numerics_of
from leveret.certify.thresholds import BOUNDS, Numerics, kind_of
from leveret.certify.zoo import zoo
from leveret.errors import ConfigError
from leveret.tokenizer.files import Tokenizer


def form_of(tokenizer: Tokenizer) -> LeveretForm:
    import torch

    from leveret.chat.template import template_for

    return LeveretForm(
        name="x",
        reader="leveret",
        path=None,
        numerics=numerics_of(torch.float32, None),
        model=None,
        own_tokenizer=tokenizer,
        template=template_for(tokenizer),
        stops=Stops(declared=frozenset()),
    )


def test_names_are_unique_and_every_known_kind_of_trouble_is_there() -> None:
    fixtures = zoo(["<s>"])
    names = [fixture.name for fixture in fixtures]
    assert len(set(names)) == len(names)
    texts = "".join(fixture.text or "" for fixture in fixtures)
    for trouble in ("👨‍👩‍👧‍👦", "野兔", "\t", "\n\n\n", "cafe\u0301", "\ufeff", "𠮷"):
        assert trouble in texts
    chats = [fixture for fixture in fixtures if fixture.kind == "chat"]
    assert any(fixture.tools for fixture in chats) and any(not fixture.add_generation_prompt for fixture in chats)
    assert any(message["role"] == "system" for fixture in chats for message in fixture.messages)
    assert any(message["content"] == "" for fixture in chats for message in fixture.messages)


def test_user_text_that_spells_special_tokens_gives_none_of_them(tokenizer: Tokenizer) -> None:
    form = form_of(tokenizer)
    for fixture in zoo(list(tokenizer.special_ids)):
        ids = form.encode(fixture)
        if fixture.holds_special_text and fixture.kind == "text":
            assert not set(ids) & set(tokenizer.special_ids.values())
        if fixture.name == "special tokens in a question":
            question = next(plain for plain in zoo() if plain.name == "one question")
            special = [index for index in ids if tokenizer.is_special(index)]
            assert special == [index for index in form.encode(question) if tokenizer.is_special(index)]


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (Numerics(dtype="float32"), Numerics(dtype="float32"), "exact"),
        (Numerics(dtype="float32"), Numerics(dtype="bfloat16"), "16-bit"),
        (Numerics(dtype="float16"), Numerics(dtype="float16"), "16-bit"),
        (Numerics(dtype="bfloat16"), Numerics(dtype="bfloat16", bits=8), "int8"),
        (Numerics(dtype="float32", bits=8), Numerics(dtype="float32", bits=4), "int4"),
    ],
)
def test_the_coarser_side_decides_what_a_pair_is_judged_by(first: Numerics, second: Numerics, kind: str) -> None:
    assert kind_of(first, second) == kind_of(second, first) == kind


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, "int8"), (6, "int4"), (4, "int4"), (3, "int3"), (2, "int2"), (1, "int2")]
)
def test_the_coarser_side_decides_by_its_bits(bits: int, kind: str) -> None:
    whole, rounded = Numerics(dtype="float32"), Numerics(dtype="float32", bits=bits)
    assert kind_of(whole, rounded) == kind_of(rounded, whole) == kind


def test_bounds_grow_from_kind_to_kind() -> None:
    kl = [bounds.kl_nats for bounds in BOUNDS.values()]
    ratio = [bounds.perplexity_ratio for bounds in BOUNDS.values()]
    assert kl == sorted(kl) and ratio == sorted(ratio) and len(BOUNDS) == 6


def test_a_number_format_without_bounds_is_refused() -> None:
    import torch

    with pytest.raises(ConfigError, match="float64"):
        numerics_of(torch.float64, None)
