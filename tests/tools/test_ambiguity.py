"""Wordings that two tools share are found, and the phone's own books have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leveret.tools.ambiguity import shared_wordings
from leveret.tools.made_up import made_up_rules
from leveret.tools.phrase_book import PhraseBook
from leveret.tools.schema import ToolSet

RECIPE = Path(__file__).parents[2] / "recipes" / "phone"

BOOK: dict[str, Any] = {
    "language": "en",
    "slots": {"play_music.name": "song", "open_app.name": "app", "level": "volume"},
    "rules": {"p": ["", "please "], "verb": ["start", "begin"]},
    "values": {"song": ["Blue", "Red"], "app": ["Chrome", "Maps"]},
    "surfaces": {"volume": {"10": ["ten"], "20": ["twenty"]}},
    "tools": {"play_music": [], "open_app": []},
}


def book(phone: ToolSet, music: list[str], app: list[str], **tools: list[str]) -> PhraseBook:
    return PhraseBook({**BOOK, "tools": {"play_music": music, "open_app": app, **tools}}, phone, source="book.yaml")


def test_the_same_words_for_two_tools_are_found_whatever_is_polite_about_them(phone: ToolSet) -> None:
    found = shared_wordings(book(phone, ["<p>(play|start) {name}", "put on {name}"], ["(open|Start) {name}<p>"]))
    assert found == {"start {}": ["open_app", "play_music"]}


def test_a_rule_between_that_may_say_nothing_hides_no_wording(phone: ToolSet) -> None:
    found = shared_wordings(book(phone, ["start {name}"], ["start <p>{name}"]))
    assert found == {"start {}": ["open_app", "play_music"]}
    assert not shared_wordings(book(phone, ["start {name}"], ["start <verb> {name}"]))


@pytest.mark.parametrize(
    ("music", "app"),
    [
        (["play {name}"], ["open {name}"]),
        (["start the song {name}"], ["start {name}"]),
        (["<verb> {name}"], ["start {name}"]),  # a rule that always says something is a word of its own
        (["(play|start) {name}", "start {name} now"], ["open {name}"]),  # twice, but for one tool
    ],
)
def test_wordings_of_one_tool_each_are_not(phone: ToolSet, music: list[str], app: list[str]) -> None:
    assert shared_wordings(book(phone, music, app)) == {}


def test_a_closed_set_of_values_tells_for_itself(phone: ToolSet) -> None:
    """ "set to ten" and "set to Chrome": the one is a level and nothing else is."""
    assert shared_wordings(book(phone, ["play {name}"], ["set to {name}"], set_volume=["set to {level}"])) == {}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_wording_of_the_phone_recipe_asks_for_two_tools(phone: ToolSet, language: str) -> None:
    rules = made_up_rules(0, ["a stretch of text"], count=300)
    assert shared_wordings(PhraseBook.load(RECIPE / f"phrases.{language}.yaml", phone, plain_rules=rules)) == {}
