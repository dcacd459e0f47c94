"""A parameter judges values."""

from __future__ import annotations

import pytest

from leveret.errors import ToolError
from leveret.tools.schema import Parameter, Tool, ToolSet


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (Parameter(name="x", type="integer", minimum=0, maximum=100), [0, 100], [-1, 101, 5.0, True, "5", None]),
        (Parameter(name="x", type="number", minimum=0.5), [0.5, 7], [0.4, float("nan"), float("inf"), True, "1"]),
        (Parameter(name="x", type="boolean"), [True, False], [1, 0, "true", None]),
        (Parameter(name="x", type="enum", choices=("a", "b")), ["a"], ["A", "", 1]),
        (Parameter(name="x", type="string"), ["", "中", "a\nb"], ["\ud800", 3, None]),
        (Parameter(name="x", type="string", min_length=1, max_length=2), ["中文"], ["", "abc"]),
        (Parameter(name="x", type="string", format="HH:MM"), ["00:00", "23:59"], ["24:00", "7:00", "07:60", "07:00 "]),
        (
            Parameter(name="x", type="string", format="date", choices=("today",)),
            ["today", "2024-02-29", "2000-02-29", "1999-12-31"],
            ["tomorrow", "2023-02-29", "1900-02-29", "2024-04-31", "2024-13-01", "24-1-1", "2024-01-00"],
        ),
        (
            Parameter(name="x", type="string", format="phone"),
            ["110", "+49 (170) 555-0199", "*100#", "13800138000"],
            ["", "1", "bob", "12a", "+", "1" * 30],
        ),
        (Parameter(name="x", type="string", pattern="[A-Z]{2}"), ["AB"], ["AB\n", "abc", "ABC"]),
        (Parameter(name="x", type="string", format="uri"), ["anything: an annotation only"], []),
    ],
)
def test_a_parameter_takes_good_values_and_explains_bad_ones(
    parameter: Parameter, good: list[object], bad: list[object]
) -> None:
    assert [parameter.problem(value) for value in good] == [None] * len(good)
    assert all(parameter.problem(value) for value in bad)


def test_arguments_are_put_in_order_and_absent_ones_left_out(phone: ToolSet) -> None:
    alarm = phone.get("set_alarm")
    assert list(alarm.validate({"label": "work", "time": "07:00"})) == ["time", "label"]
    assert alarm.validate({"time": "07:00", "label": None}) == {"time": "07:00"}


def test_a_whole_number_is_an_integer_however_json_writes_it(phone: ToolSet) -> None:
    volume = phone.get("set_volume").validate({"level": 50.0})
    assert volume == {"level": 50} and isinstance(volume["level"], int)
    for level in (50.5, float("inf"), float("nan"), 101.0):
        with pytest.raises(ToolError, match="set_volume: level"):
            phone.get("set_volume").validate({"level": level})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "needs the argument 'time'"),
        ({"time": "25:00"}, "set_alarm: time must look like HH:MM"),
        ({"time": "07:00", "labels": "x"}, "no parameter 'labels'"),
    ],
)
def test_bad_arguments_are_refused_by_name(phone: ToolSet, arguments: dict[str, str], reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        phone.get("set_alarm").validate(arguments)


def test_a_tool_set_has_unique_names_in_order() -> None:
    with pytest.raises(ToolError, match="'x' is declared twice"):
        ToolSet([Tool(name="x"), Tool(name="x")])
    with pytest.raises(ToolError, match="at least one"):
        ToolSet([])
    tools = ToolSet([Tool(name="b"), Tool(name="a")])
    assert tools.names == ("b", "a") and tools.functional_tokens == ("<api_0>", "<api_1>")
    with pytest.raises(ToolError, match="unknown tool 'c'"):
        tools.get("c")
