"""An independent reading of spoken times, durations, levels and dates, for test_spoken.py.

The source draws a value and words for it; this reads words, by rules of its own and by no table of the source's. What
it cannot read is an error: a wording is only right if somebody else understands it.
"""

from __future__ import annotations

import re
from datetime import date

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_MONTHS = "January February March April May June July August September October November December"
ENGLISH = {word: number for number, word in enumerate(_SMALL.split())}
ENGLISH |= {word: 10 * number for number, word in enumerate(_TENS.split(), start=2)}
HAN = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"两": 2}


def english_count(text: str) -> int:
    """ "forty five", "45", "a hundred", "an"."""
    if text.isdigit():
        return int(text)
    if text in ("a", "an"):
        return 1
    if text in ("a hundred", "one hundred"):
        return 100
    numbers = [ENGLISH[word] for word in text.replace("-", " ").split()]
    assert len(numbers) == 1 or (
        len(numbers) == 2 and numbers[0] >= 20 and numbers[0] % 10 == 0 and 0 < numbers[1] < 10
    )
    return sum(numbers)


def han_count(text: str) -> int:
    """ "四十五", "十五", "两", "45"."""
    if text.isascii():
        return int(text)
    if text in ("一百", "百"):
        return 100
    found = re.fullmatch(r"(?:([一二三四五六七八九]?)(十))?([零一二两三四五六七八九]?)", text)
    assert found and text, text
    assert not (found[2] and found[3] in ("零", "两")), text
    tens = 10 * (HAN[found[1]] if found[1] else 1) if found[2] else 0
    return tens + (HAN[found[3]] if found[3] else 0)


def read_english_time(text: str) -> str:
    """HH:MM of an English time."""
    if text in ("noon", "midnight"):
        return {"noon": "12:00", "midnight": "00:00"}[text]
    text = text.lower()
    found = re.fullmatch(r"(.*?) ?(am|pm|a\.m\.|p\.m\.|in the \w+|this \w+|at night|tonight)?", text)
    assert found
    clock, part = found[1], found[2]
    relation = re.fullmatch(r"(.+) (past|after|to|before|till) (.+)", clock)
    if relation:
        amounts = {"half": 30, "quarter": 15, "a quarter": 15}
        minutes = amounts[relation[1]] if relation[1] in amounts else english_count(relation[1])
        assert 0 < minutes <= 30
        total = english_count(relation[3]) * 60 + (minutes if relation[2] in ("past", "after") else -minutes)
        assert not (relation[2] not in ("past", "after") and relation[3] in ("12", "twelve")), f"{text} is ambiguous"
    else:
        total = _english_digits_or_words(clock)
    hour, minute = divmod(total, 60)
    if part is None:
        return f"{hour:02d}:{minute:02d}"
    assert 1 <= (hour % 12 or 12) == (hour or 12), f"{text}: a 24-hour time with a part of the day"
    hour %= 12
    late = part in ("pm", "p.m.", "in the afternoon", "this afternoon", "in the evening", "this evening")
    late = late or (part in ("at night", "tonight") and hour >= 6)
    hour += 12 if late else 0
    windows = {
        "afternoon": range(12, 18),
        "evening": range(17, 23),
        "this morning": range(5, 12),
        "tonight": range(19, 24),
    }
    for word, window in windows.items():
        assert word not in part or hour in window, text
    return f"{hour:02d}:{minute:02d}"


def _english_digits_or_words(clock: str) -> int:
    """Minutes since the clock's twelve, or since midnight of a 24-hour time."""
    if found := re.fullmatch(r"(\d{1,2})[: ](\d\d)", clock):
        return int(found[1]) * 60 + int(found[2])
    words = clock.removesuffix(" o'clock").split()
    if len(words) == 1:
        return english_count(words[0]) * 60
    if words[1] == "oh":
        assert len(words) == 3 and 0 < english_count(words[2]) < 10
        return english_count(words[0]) * 60 + english_count(words[2])
    return english_count(words[0]) * 60 + english_count(" ".join(words[1:]))


def read_chinese_time(text: str) -> str:
    """HH:MM of a Chinese time."""
    if text in ("中午", "正午", "午夜"):
        return "00:00" if text == "午夜" else "12:00"
    found = re.fullmatch(r"(凌晨|半夜|午夜|早上|早晨|清晨|上午|中午|下午|傍晚|午后|晚上|夜里|今晚)?(.+)", text)
    assert found
    part, clock = found[1], found[2]
    if before := re.fullmatch(r"差(?:(一刻)|(.+?)分)(.+)点", clock):
        assert before[2] is None or before[2] == "两" or before[2][0] not in "零二" or before[2] == "二十"
        hour, minute = han_count(before[3]) - 1, 60 - (15 if before[1] else han_count(before[2]))
        hour = hour or 12
    elif digital := re.fullmatch(r"(\d{1,2}):(\d\d)", clock):
        hour, minute = int(digital[1]), int(digital[2])
    else:
        pointed = re.fullmatch(r"(.+?)([点时])(.*)", clock)
        assert pointed, text
        assert pointed[1] != "二", f"{text}: 两点 is meant"
        assert not (pointed[2] == "时" and pointed[3] and not pointed[3].endswith(("分", "整"))), text
        hour, minute = han_count(pointed[1]), _chinese_minute(pointed[3])
    windows = {
        "凌晨": range(0, 5), "半夜": range(0, 5), "午夜": range(0, 1), "早上": range(5, 12), "早晨": range(5, 9),
        "清晨": range(5, 9), "上午": range(5, 12), "中午": range(12, 13), "下午": range(13, 18), "午后": range(13, 18),
        "傍晚": range(17, 20), "晚上": range(18, 24), "夜里": range(20, 24), "今晚": range(18, 24),
    }  # fmt: skip
    if part is not None:
        assert hour <= 12, text
        fitting = [one for one in {hour % 12, hour % 12 + 12} if one in windows[part]]
        assert len(fitting) == 1, text
        hour = fitting[0]
    return f"{hour:02d}:{minute:02d}"


def _chinese_minute(text: str) -> int:
    words = {"": 0, "整": 0, "钟": 0, "半": 30, "一刻": 15, "三刻": 45}
    if text in words:
        return words[text]
    number = text.removesuffix("分")
    if number.isascii():
        assert len(number) == 2
        return int(number)
    assert number.startswith("零") == (han_count(number.lstrip("零")) < 10)
    return han_count(number.lstrip("零"))


def read_english_minutes(text: str) -> int:
    """Minutes of an English duration."""
    text = text.replace("-hour", " hour").replace("-min", " min")
    text = re.sub(r"(?<=\d)min", " min", text)
    fractions = {
        "half an hour": 30, "a half hour": 30, "half hour": 30, "a quarter of an hour": 15, "quarter of an hour": 15,
        "three quarters of an hour": 45, "an hour and a half": 90, "a couple of hours": 120, "a couple of minutes": 2,
    }  # fmt: skip
    if text in fractions:
        return fractions[text]
    if found := re.fullmatch(r"(\S+) and a half hours", text):
        return english_count(found[1]) * 60 + 30
    if text == "1.5 hours":
        return 90
    found = re.fullmatch(r"(?:(.+?) (?:hours?|hrs?)\b)?(?: and )?(?: ?(.+) (?:minutes?|mins?))?", text)
    assert found and (found[1] or found[2]), text
    return 60 * (english_count(found[1]) if found[1] else 0) + (english_count(found[2]) if found[2] else 0)


def read_chinese_minutes(text: str) -> int:
    """Minutes of a Chinese duration."""
    text = text.replace(" ", "")
    if found := re.fullmatch(r"(一|三)刻钟", text):
        return 15 * HAN[found[1]]
    if found := re.fullmatch(r"(.*?)个?半个?(?:小时|钟头)", text):
        return 30 + (60 * han_count(found[1]) if found[1] else 0)
    if text == "1.5小时":
        return 90
    found = re.fullmatch(r"(?:([^个小]+)个?(?:小时|钟头))?(?:零?(.+?)分钟?)?", text)
    assert found and (found[1] or found[2]), text
    assert "二" not in (found[1], found[2]), f"{text}: 两 is meant"
    return 60 * (han_count(found[1]) if found[1] else 0) + (han_count(found[2]) if found[2] else 0)


def read_english_level(text: str) -> int:
    """A level of 0 to 100."""
    if re.search(r"\b(max|maximum|full|highest|loudest|brightest)\b", text):
        return 100
    if re.search(r"\b(min|minimum|lowest|silent|quietest|darkest|dimmest)\b", text):
        return 0
    return 50 if text in ("half", "halfway") else english_count(re.sub(r" ?(percent|%)$", "", text))


def read_chinese_level(text: str) -> int:
    """A level of 0 to 100."""
    if text in ("最大", "最高", "满格", "最响", "最亮"):
        return 100
    if text in ("最小", "最低", "最暗"):
        return 0
    return 50 if text == "一半" else han_count(text.removeprefix("百分之").removesuffix("%"))


def read_english_date(text: str) -> str:
    """today, tomorrow or YYYY-MM-DD."""
    if text in ("today", "tomorrow"):
        return text
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return date.fromisoformat(text).isoformat()
    month = re.search(r"[A-Z][a-z]+", text)
    year, day = re.search(r"\d{4}$", text), re.search(r"(?<!\d)(\d{1,2})(st|nd|rd|th)?(?!\d)", text)
    assert month and year and day, text
    if day[2]:
        units = {1: "st", 2: "nd", 3: "rd"}
        expected = "th" if int(day[1]) in (11, 12, 13) else units.get(int(day[1]) % 10, "th")
        assert day[2] == expected, text
    names = _MONTHS.split()
    number = next(n for n, name in enumerate(names, start=1) if month[0] in (name, name[:3]))
    return date(int(year[0]), number, int(day[1])).isoformat()


def read_chinese_date(text: str) -> str:
    """today, tomorrow or YYYY-MM-DD."""
    if text in ("今天", "今儿", "明天", "明儿"):
        return "today" if text[0] == "今" else "tomorrow"
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return date.fromisoformat(text).isoformat()
    found = re.fullmatch(r"(.{4})年(.+)月(.+)[日号]", text)
    assert found, text
    year = "".join(str(HAN[digit]) if digit in HAN else digit for digit in found[1])
    return date(int(year), han_count(found[2]), han_count(found[3])).isoformat()
