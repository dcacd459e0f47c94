"""What is said means the value: every draw is read back by rules that know nothing of the source."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from leveret.tools.schema import ToolSet
from leveret.tools.spoken import SPOKEN, Spoken
from leveret.tools.spoken_chinese import chinese_number
from leveret.tools.spoken_english import english_number

DRAWS = 4000


def _load_reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clock_reader", Path(__file__).with_name("clock_reader.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reader = _load_reader()
READERS: dict[tuple[str, str], Callable[[str], str | int]] = {
    ("en", "time"): reader.read_english_time,
    ("en", "clock_time"): reader.read_english_time,
    ("en", "minutes"): reader.read_english_minutes,
    ("en", "length"): reader.read_english_minutes,
    ("en", "level"): reader.read_english_level,
    ("en", "volume"): reader.read_english_level,
    ("en", "brightness"): reader.read_english_level,
    ("en", "date"): reader.read_english_date,
    ("en", "phone"): str,
    ("zh", "time"): reader.read_chinese_time,
    ("zh", "clock_time"): reader.read_chinese_time,
    ("zh", "minutes"): reader.read_chinese_minutes,
    ("zh", "level"): reader.read_chinese_level,
    ("zh", "volume"): reader.read_chinese_level,
    ("zh", "brightness"): reader.read_chinese_level,
    ("zh", "date"): reader.read_chinese_date,
    ("zh", "phone"): str,
}
ARGUMENTS = {
    "time": ("set_alarm", "time"),
    "clock_time": ("create_event", "time"),
    "minutes": ("set_timer", "minutes"),
    "length": ("set_timer", "minutes"),
    "level": ("set_volume", "level"),
    "volume": ("set_volume", "level"),
    "brightness": ("set_brightness", "level"),
    "date": ("create_event", "date"),
    "phone": ("make_phone_call", "phone_number"),
}
EVERY_KIND = [(language, kind) for language, kinds in SPOKEN.items() for kind in kinds]


def draws(language: str, kind: str) -> list[Spoken]:
    rng = random.Random(f"{language}/{kind}")
    return [SPOKEN[language][kind](rng) for _ in range(DRAWS)]


@pytest.mark.parametrize(("language", "kind"), EVERY_KIND)
def test_somebody_else_reads_the_same_value(language: str, kind: str) -> None:
    read = READERS[language, kind]
    wrong = {(said.surface, said.value) for said in draws(language, kind) if read(said.surface) != said.value}
    assert not wrong


@pytest.mark.parametrize(("language", "kind"), EVERY_KIND)
def test_values_fit_the_tools_and_surfaces_have_no_loose_spaces(language: str, kind: str, phone: ToolSet) -> None:
    tool, argument = ARGUMENTS[kind]
    parameter = phone.get(tool).parameter(argument)
    for said in draws(language, kind):
        assert parameter.problem(said.value) is None, said
        assert said.surface == " ".join(said.surface.split())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_times_cover_the_day_and_levels_the_range(language: str) -> None:
    assert {str(said.value)[:2] for said in draws(language, "time")} == {f"{hour:02d}" for hour in range(24)}
    assert len({said.value for said in draws(language, "level")}) > 95
    assert {said.value for said in draws(language, "minutes")} >= {1, 15, 30, 45, 60, 90, 120}
    assert {"today", "tomorrow"} <= {said.value for said in draws(language, "date")}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_one_value_is_said_in_many_ways(language: str) -> None:
    rng = random.Random(0)
    said = [SPOKEN[language]["time"](rng) for _ in range(20_000)]
    assert len({one.surface for one in said if one.value == "20:30"}) > 12


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_time_beside_a_date_never_says_today(language: str) -> None:
    words = ("this ", "tonight", "今晚")
    assert not [said for said in draws(language, "clock_time") if any(word in said.surface for word in words)]
    assert [said for said in draws(language, "time") if any(word in said.surface for word in words)]


def test_numbers_are_written_as_the_reader_counts() -> None:
    for number in range(101):
        assert reader.english_count(english_number(number)) == number
        assert reader.han_count(chinese_number(number)) == number


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        ("read_english_time", "12 am", "00:00"),
        ("read_english_time", "half past 12 in the afternoon", "12:30"),
        ("read_english_time", "quarter to one pm", "12:45"),
        ("read_chinese_time", "中午12点半", "12:30"),
        ("read_chinese_time", "晚上差一刻九点", "20:45"),
        ("read_chinese_time", "凌晨两点零五", "02:05"),
        ("read_english_minutes", "2 and a half hours", 150),
        ("read_chinese_minutes", "两个半小时", 150),
        ("read_english_date", "the 3rd of May 2027", "2027-05-03"),
    ],
)
def test_the_reader_itself_reads_right(read: str, text: str, value: str | int) -> None:
    assert getattr(reader, read)(text) == value


@pytest.mark.parametrize(
    "text", ["quarter to 12 am", "13:00 pm", "half past 3 this evening", "6 tonight", "晚上3点", "二点半", "八时半"]
)
def test_the_reader_refuses_what_nobody_would_say(text: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        (reader.read_english_time if text.isascii() else reader.read_chinese_time)(text)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", ["time", "clock_time"])
def test_times_said_backwards_are_marked_as_calculated(language: str, kind: str) -> None:
    backwards = (" to ", " before ", " till ", "差")
    said = draws(language, kind)
    assert any(one.calculated for one in said)
    for one in said:
        assert one.calculated == any(word in one.surface for word in backwards), one
        assert not one.calculated or int(str(one.value)[3:]) > 30


@pytest.mark.parametrize("language", ["en", "zh"])
def test_lengths_of_hours_and_minutes_are_marked_as_calculated(language: str) -> None:
    parts = {"en": ("and a half hours", "hour", "minute"), "zh": ("个半", "小时", "分")}[language]
    said = draws(language, "minutes")
    assert any(one.calculated for one in said)
    for one in said:
        added = parts[0] in one.surface or (parts[1] in one.surface and parts[2] in one.surface)
        assert one.calculated == added, one


def test_dates_with_the_name_of_a_month_are_marked_as_calculated() -> None:
    said = draws("en", "date")
    assert any(one.calculated for one in said)
    assert all(one.calculated == (one.surface[0] not in "0123456789" or " " in one.surface)
               for one in said if one.value not in ("today", "tomorrow"))  # fmt: skip
