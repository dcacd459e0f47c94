"""How people say times, durations, levels and dates in Chinese.

Each function draws a pair of the words in a request and the value that a call carries, such as ("晚上八点一刻",
"20:15"). Before a measure word two is 两, otherwise 二: 两点零二分. A time without a part of the day is read as it is
written: 三点 is 03:00.
"""

from __future__ import annotations

import random

from leveret.tools.spoken_value import (
    Spoken,
    calendar_day,
    common_hour,
    common_level,
    common_minute,
    common_minutes,
    table,
)

_DIGITS = "零一二三四五六七八九"
_MISSING = "差"
"""Before the minutes that are missing to an hour."""


def chinese_number(number: int) -> str:
    """`number` (0 to 100) in Chinese numerals: 45 -> "四十五", 15 -> "十五"."""
    if number < 10:
        return _DIGITS[number]
    if number == 100:
        return "一百"
    tens, ones = divmod(number, 10)
    return ("" if tens == 1 else _DIGITS[tens]) + "十" + (_DIGITS[ones] if ones else "")


def _count(number: int) -> str:
    """`number` before a measure word."""
    return "两" if number == 2 else chinese_number(number)


def chinese_time(rng: random.Random) -> Spoken:
    """A time of day as a Chinese speaker types or says it, with HH:MM (24 hours)."""
    return _time(rng, today=True)


def chinese_clock_time(rng: random.Random) -> Spoken:
    """Like `chinese_time`, without words that mean today (今晚): it stands beside a date."""
    return _time(rng, today=False)


def _time(rng: random.Random, *, today: bool) -> Spoken:
    hour, minute = common_hour(rng), common_minute(rng)
    value = f"{hour:02d}:{minute:02d}"
    style = rng.random()
    if style < 0.15:
        return Spoken(surface=rng.choice((value, f"{hour}:{minute:02d}")), value=value)
    if style < 0.19:
        word, named = rng.choice((("中午", "12:00"), ("午夜", "00:00"), ("正午", "12:00")))
        return Spoken(surface=word, value=named)
    if style < 0.26:
        return Spoken(surface=f"{hour}点{_minutes_past(minute, rng, digits=True)}", value=value)
    if style < 0.32 and 0 < hour < 12:
        return Spoken(surface=f"{_count(hour)}点{_minutes_past(minute, rng, digits=False)}", value=value)
    surface = _with_part_of_day(hour, minute, rng, today=today)
    return Spoken(surface=surface, value=value, calculated=_MISSING in surface)


def _with_part_of_day(hour: int, minute: int, rng: random.Random, *, today: bool) -> str:
    part, hour12 = _part_of_day(hour, rng, today=today), hour % 12 or 12
    style = rng.random()
    if part.endswith("零点"):
        return part + _minutes_past(minute, rng, digits=False)
    if style < 0.2:
        return f"{part}{hour12}:{minute:02d}"
    if style < 0.27 and minute in (45, 50, 55):
        amount = "一刻" if minute == 45 and rng.random() < 0.7 else f"{_count(60 - minute)}分"
        return f"{part}{_MISSING}{amount}{_count(hour12 % 12 + 1)}点"
    digits = rng.random() < 0.45
    said = str(hour12) if digits else _count(hour12)
    if rng.random() < 0.05:
        number = f"{minute:02d}" if digits else _minute_number(minute)
        return f"{part}{said}时整" if minute == 0 else f"{part}{said}时{number}分"
    return f"{part}{said}点{_minutes_past(minute, rng, digits=digits)}"


def _minutes_past(minute: int, rng: random.Random, *, digits: bool) -> str:
    """What follows 点."""
    if minute == 0:
        return rng.choice(("", "", "", "整", "钟"))
    quarters = {15: "一刻", 30: "半", 45: "三刻"}
    if minute in quarters and rng.random() < (0.85 if minute == 30 else 0.42):
        return quarters[minute]
    if digits:
        return f"{minute:02d}" + rng.choice(("", "分"))
    return _minute_number(minute) + ("分" if minute % 10 == 0 or rng.random() < 0.6 else "")


def _minute_number(minute: int) -> str:
    return ("零" if minute < 10 else "") + chinese_number(minute)


def _part_of_day(hour: int, rng: random.Random, *, today: bool) -> str:
    """A word for the part of the day; at midnight it may bring its own hour (零点)."""
    if hour == 0:
        return rng.choice(("零点", "凌晨零点", "半夜", "午夜", "凌晨"))
    if hour < 5:
        return rng.choice(("凌晨", "凌晨", "半夜"))
    if hour < 9:
        return rng.choice(("早上", "早上", "早晨", "清晨", "上午"))
    if hour < 12:
        return rng.choice(("上午", "上午", "早上"))
    if hour == 12:
        return "中午"
    if hour < 18:
        return rng.choice(("下午", "下午", "下午", "傍晚" if hour == 17 else "下午", "午后"))
    return rng.choice(("晚上", "晚上", "晚上", "傍晚" if hour < 20 else "夜里", "今晚" if today else "晚上"))


_DURATIONS = table(
    {
        1: "一分钟, 1分钟",
        15: "一刻钟",
        30: "半小时, 半个小时, 半个钟头",
        45: "三刻钟",
        60: "一小时, 一个小时, 一个钟头",
        90: "1.5小时",
    }
)


def chinese_minutes(rng: random.Random) -> Spoken:
    """A length of time in Chinese, with whole minutes."""
    style = rng.random()
    if style < 0.2:
        return rng.choice(_DURATIONS)
    if style < 0.3:
        hours = rng.choice((1, 2, 2, 3, 4, 5, 6))
        said = rng.choice((str(hours), _count(hours)))
        return Spoken(surface=said + rng.choice(("小时", "个小时", "个钟头")), value=60 * hours)
    if style < 0.38:
        return _hours_and_minutes(rng)
    minutes = common_minutes(rng)
    if minutes <= 100 and rng.random() < 0.55:
        return Spoken(surface=_count(minutes) + rng.choice(("分钟", "分钟", "分")), value=minutes)
    return Spoken(surface=f"{minutes}{rng.choice(('分钟', '分钟', '分', ' 分钟'))}", value=minutes)


def _hours_and_minutes(rng: random.Random) -> Spoken:
    hours, minutes = rng.choice((1, 1, 2, 3)), rng.choice((5, 10, 15, 20, 25, 30, 40, 45, 50))
    if minutes == 30 or rng.random() < 0.25:
        hours = rng.choice((1, 1, 2, 2, 3, 4, 5))
        unit = rng.choice(("小时", "小时", "钟头"))
        return Spoken(
            surface=f"{rng.choice((str(hours), _count(hours)))}个半{unit}", value=60 * hours + 30, calculated=True
        )
    said = (str(hours), str(minutes)) if rng.random() < 0.4 else (_count(hours), chinese_number(minutes))
    joint = rng.choice(("", "零")) if minutes < 10 or not said[0].isdigit() else ""
    surface = f"{said[0]}{rng.choice(('小时', '个小时'))}{joint}{said[1]}分钟"
    return Spoken(surface=surface, value=60 * hours + minutes, calculated=True)


_LEVEL_WORDS = table({0: "最小, 最低, 零", 50: "一半", 100: "最大, 最高, 满格, 百分之百"})
_VOLUME_WORDS = _LEVEL_WORDS + table({100: "最响"})
_BRIGHTNESS_WORDS = _LEVEL_WORDS + table({0: "最暗", 100: "最亮"})


def chinese_level(rng: random.Random) -> Spoken:
    """A level between 0 and 100 in Chinese."""
    return _level(_LEVEL_WORDS, rng)


def chinese_volume(rng: random.Random) -> Spoken:
    """Like `chinese_level`, with words for sound."""
    return _level(_VOLUME_WORDS, rng)


def chinese_brightness(rng: random.Random) -> Spoken:
    """Like `chinese_level`, with words for light."""
    return _level(_BRIGHTNESS_WORDS, rng)


def _level(words: tuple[Spoken, ...], rng: random.Random) -> Spoken:
    style = rng.random()
    if style < 0.2:
        return rng.choice(words)
    level = common_level(rng)
    if style < 0.35:
        return Spoken(surface=f"百分之{'百' if level == 100 else chinese_number(level)}", value=level)
    if style < 0.45:
        return Spoken(surface=chinese_number(level), value=level)
    return Spoken(surface=f"{level}{rng.choice(('', '', '%', '%'))}", value=level)


_DAYS = tuple(
    Spoken(surface=surface, value="today" if surface[0] == "今" else "tomorrow")
    for surface in ("今天", "今儿", "明天", "明天", "明儿")
)


def chinese_date(rng: random.Random) -> Spoken:
    """A day: 今天, 明天, or a full date, in Chinese."""
    style = rng.random()
    if style < 0.62:
        return rng.choice(_DAYS)
    year, month, day = calendar_day(rng)
    iso = f"{year}-{month:02d}-{day:02d}"
    if style < 0.8:
        return Spoken(surface=iso, value=iso)
    last = rng.choice("日号")
    if style < 0.85:
        digits = "".join(_DIGITS[int(digit)] for digit in str(year))
        return Spoken(surface=f"{digits}年{chinese_number(month)}月{chinese_number(day)}{last}", value=iso)
    return Spoken(surface=f"{year}年{month}月{day}{last}", value=iso)
