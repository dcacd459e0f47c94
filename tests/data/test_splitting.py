"""Long conversations are divided at the borders of their turns, and nothing of them is lost or said twice."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from leveret.chat.messages import Message
from leveret.data.examples import Conversation
from leveret.data.splitting import split_conversation

SYSTEM = Message("system", "s")
ROLES = {"u": "user", "a": "assistant", "t": "tool", "s": "system"}


def parts_of(letters: str, most: int) -> list[str]:
    """Each message is one letter; a part may have `most` of them."""
    messages = tuple(Message(ROLES[letter.lower()], letter) for letter in letters)
    tools = ({"name": "f"},)
    parts = split_conversation(Conversation(messages=messages, key="x:1", tools=tools), written, _fits(most))
    assert all(part.key == "x:1" and part.tools == tools and text == written(part) for part, text in parts)
    return [text for _, text in parts]


def written(conversation: Conversation) -> str:
    return "".join(message.content for message in conversation.messages)


def _fits(most: int):  # type: ignore[no-untyped-def]
    return lambda text: len(text) <= most


def test_turns_fill_parts_and_the_system_message_opens_each() -> None:
    assert parts_of("suauaUAua", 9) == ["suauaUAua"]
    assert parts_of("suauaUAua", 5) == ["suaua", "sUAua"]
    assert parts_of("uaUAua", 5) == ["uaUA", "ua"]


def test_a_turn_is_not_divided_even_if_it_is_too_long() -> None:
    assert parts_of("suaUatataua", 5) == ["sua", "sUatata", "sua"]
    assert parts_of("uuuuua", 3) == ["uuuuua"]


def test_calls_and_their_answers_stay_with_their_question() -> None:
    assert parts_of("uataUAu", 4) == ["uata", "UAu"]


@given(turns=st.lists(st.sampled_from(["ua", "uua", "uata", "uaa"]), min_size=1, max_size=8), most=st.integers(2, 20))
def test_every_message_is_in_exactly_one_part(turns: Sequence[str], most: int) -> None:
    parts = parts_of("s" + "".join(turns), most)
    assert all(part.startswith("s") for part in parts)
    assert "".join(part[1:] for part in parts) == "".join(turns)
    assert all(len(part) <= most or part[1:] in turns for part in parts)
