"""Which wordings are held out: those whose hash says so, unless training would not meet one of their words."""

import random

from leveret.tools.phrase_rules import skeleton
from leveret.tools.phrases import parse_pattern
from leveret.tools.wordings import HELD_OUT_PERCENT, Wordings, is_held_out, words_of


def drawn(wordings, *, held_out, number=400):
    rng = random.Random(1)
    found = [wordings.draw(rng, held_out=held_out) for _ in range(number)]
    return {skeleton(one[1]) for one in found if one is not None}


def patterns(*lines):
    return tuple(parse_pattern(line) for line in lines)


def test_the_words_of_a_wording_are_its_own_text_only():
    assert words_of("<polite>Call {name}'s phone, 打给{name} 2nd") == ["call", "'s", "phone", "打", "给", "2", "nd"]


def test_every_word_that_is_held_out_is_also_trained():
    numbers = [f"word{chr(97 + number // 8)}{chr(97 + number % 8)}" for number in range(60)]
    wordings = Wordings(
        patterns(
            "(call|ring|phone) {name}( now| please| today| soon| again|)(|!)", *(f"{word} {{name}}" for word in numbers)
        )
    )
    trained = {word for text in drawn(wordings, held_out=False, number=5000) for word in words_of(text)}
    tested = drawn(wordings, held_out=True)
    assert tested and {word for text in tested for word in words_of(text)} <= trained
    assert trained.issuperset(numbers), "a word that only one wording has was held out"
    assert any(is_held_out(f"{word} {{name}}", HELD_OUT_PERCENT) for word in numbers)  # by its hash alone it would be


def test_where_every_word_is_said_once_the_hash_alone_decides():
    wordings = Wordings(patterns(*(f"word{number} {{name}}" for number in range(60))))
    tested = drawn(wordings, held_out=True)
    assert tested == {text for text in tested if is_held_out(text, HELD_OUT_PERCENT)} != set()
    assert not tested & drawn(wordings, held_out=False)


def test_wordings_are_split_by_their_text_wherever_they_stand():
    given = patterns("<p>(call|ring|phone) {name}(| now| today| soon| again)(|!)")
    train, tested = (drawn(Wordings(given), held_out=side) for side in (False, True))
    assert len(train | tested) == 30 and not train & tested
    assert 1 <= len(tested) <= 9 and all(is_held_out(one, HELD_OUT_PERCENT) for one in tested)
    assert "<p>ring {name} now!" in train | tested  # polite starts do not count, choices do
    assert tested == drawn(Wordings(given * 2), held_out=True)
    again = patterns("<p>(phone|ring|call) {name}(|!| now| now!| soon| soon!)")
    assert drawn(Wordings(again), held_out=True) <= tested


def test_a_wording_that_no_split_has_is_none():
    lonely = patterns("call {name}")
    side = is_held_out("call {name}", HELD_OUT_PERCENT)
    assert Wordings(lonely).draw(random.Random(0), held_out=side) == (lonely[0], list(lonely[0].nodes))
    assert Wordings(lonely).draw(random.Random(0), held_out=not side) is None


def test_without_patterns_there_is_nothing_to_draw():
    assert Wordings(()).draw(random.Random(0), held_out=False) is None
