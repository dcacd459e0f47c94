"""Every kind of mistake gets its class."""

from __future__ import annotations

import pytest

from leveret.chat.messages import ToolCall
from leveret.tools.checker import ERROR_CLASSES, check
from leveret.tools.requests import ToolRequest
from leveret.tools.schema import ToolSet
from leveret.tools.score import Judged, kind_of, language_of, score, wilson_interval

TIMER = ToolCall("set_timer", {"minutes": 5})
ALARM = ToolCall("set_alarm", {"time": "07:00"})
LABELED = ToolCall("set_alarm", {"time": "07:00", "label": "Gym"})
CALL = ToolCall("call_contact", {"name": "Zoë"})


@pytest.mark.parametrize(
    ("predicted", "expected", "error", "parameter"),
    [
        (None, [TIMER], "unparsable", None),
        ([], [TIMER], "missed_call", None),
        ([TIMER], [], "false_call", None),
        ([TIMER, TIMER], [TIMER], "wrong_number", None),
        ([ALARM], [TIMER], "wrong_tool", None),
        ([ToolCall("set_timer", {"minutes": 6})], [TIMER], "bad_argument", "minutes"),
        ([LABELED], [ALARM], "bad_argument", "label"),
        ([ALARM], [LABELED], "bad_argument", "label"),
        ([TIMER, ALARM], [ALARM, TIMER], "wrong_tool", None),
        ([TIMER], [TIMER], None, None),
        ([], [], None, None),
        ([ToolCall("set_timer", {"minutes": 5.0})], [TIMER], None, None),
        ([ToolCall("set_timer", {"minutes": "5"})], [TIMER], "bad_argument", "minutes"),
        ([ToolCall("call_contact", {"name": " Zoe\u0308 "})], [CALL], None, None),
        ([ToolCall("set_alarm", {"time": "07:00", "label": None})], [ALARM], None, None),
    ],
)
def test_the_first_mistake_is_named(phone: ToolSet, predicted, expected, error, parameter) -> None:
    verdict = check(predicted, expected, phone)
    assert (verdict.error, verdict.parameter, verdict.exact) == (error, parameter, error is None)


def test_true_is_not_one(phone: ToolSet) -> None:
    want = ToolCall("toggle_setting", {"setting": "wifi", "on": True})
    assert check([ToolCall("toggle_setting", {"setting": "wifi", "on": 1})], [want], phone).parameter == "on"


def test_lenient_ignores_case_punctuation_and_spacing(phone: ToolSet) -> None:
    verdict = check([ToolCall("call_contact", {"name": "z.O Ë!"})], [CALL], phone)
    assert not verdict.exact and verdict.lenient and verdict.error == "bad_argument"
    assert not check([ToolCall("call_contact", {"name": "Zoe"})], [CALL], phone).lenient


def test_without_order_calls_are_matched_to_each_other(phone: ToolSet) -> None:
    assert check([TIMER, LABELED, ALARM], [ALARM, LABELED, TIMER], phone, ordered=False).exact
    other = ToolCall("set_alarm", {"time": "08:00"})
    yes, one = (ToolCall("toggle_setting", {"setting": "wifi", "on": value}) for value in (True, 1))
    assert check([one, yes], [yes, one], phone, ordered=False).exact
    verdict = check([TIMER, other], [ALARM, TIMER], phone, ordered=False)
    assert (verdict.error, verdict.tool, verdict.parameter) == ("bad_argument", "set_alarm", "time")


def test_scores_are_cut_by_kind_language_group_and_tool(phone: ToolSet) -> None:
    requests = [
        (ToolRequest(query="five minutes", calls=(TIMER,), group="easy"), [TIMER]),
        (ToolRequest(query="五分钟", calls=(TIMER,)), [ToolCall("set_timer", {"minutes": 6})]),
        (ToolRequest(query="both", calls=(TIMER, ALARM)), None),
        (ToolRequest(query="hello", calls=()), [TIMER]),
    ]
    result = score(
        Judged(request=request, predicted=got, verdict=check(got, request.calls, phone)) for request, got in requests
    )
    assert result.overall.num_requests == 4 and result.overall.num_exact == 1
    assert {kind: tally.num_requests for kind, tally in result.kinds.items()} == {
        "combined": 1,
        "irrelevant": 1,
        "single": 2,
    }
    assert result.languages["Chinese"].errors == {"bad_argument": 1}
    assert result.groups["easy"].num_exact == 1
    assert result.tools["set_timer"].num_requests == 2
    assert result.arguments == {"set_timer.minutes": 1}
    table = result.to_json()
    assert table["overall"]["errors"] == {"unparsable": 1, "false_call": 1, "bad_argument": 1}
    assert set(table["overall"]["errors"]) <= set(ERROR_CLASSES)


def test_the_interval_is_wilsons() -> None:
    low, high = wilson_interval(95, 100)
    assert low == pytest.approx(0.8883, abs=2e-4) and high == pytest.approx(0.9785, abs=2e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_kind_and_language_come_from_the_request() -> None:
    assert kind_of(ToolRequest(query="x", calls=())) == "irrelevant"
    assert language_of("给 Bob 打电话") == "Chinese" and language_of("Zoë") == "English"
