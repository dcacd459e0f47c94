"""How people say times, durations, levels and dates in English.

Each function draws a pair of the words in a request and the value that a call carries, such as ("half past six in
the morning", "06:30"). Values and wordings are both drawn, so that the pairs cover the whole range. A time without a
part of the day is read as it is written, on the 24-hour clock: "at seven" is 07:00.
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

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


_BACKWARDS = ("to", "to", "before", "till")
"""Words between the minutes and the hour that they are missing to."""


def english_number(number: int) -> str:
    """`number` (0 to 100) in English words: 45 -> "forty five"."""
    if number < 20:
        return _ONES[number]
    if number == 100:
        return "a hundred"
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")


def english_time(rng: random.Random) -> Spoken:
    """A time of day as an English speaker types or says it, with HH:MM (24 hours)."""
    return _time(rng, today=True)


def english_clock_time(rng: random.Random) -> Spoken:
    """Like `english_time`, without words that mean today (tonight, this morning): it stands beside a date."""
    return _time(rng, today=False)


def _time(rng: random.Random, *, today: bool) -> Spoken:
    hour, minute = common_hour(rng), common_minute(rng)
    value = f"{hour:02d}:{minute:02d}"
    style = rng.random()
    if style < 0.04:
        return rng.choice((Spoken(surface="noon", value="12:00"), Spoken(surface="midnight", value="00:00")))
    if style < 0.25:
        return Spoken(surface=rng.choice((value, f"{hour}:{minute:02d}", value)), value=value)
    clock = _clock(hour % 12 or 12, minute, rng)
    if style < 0.30 and 5 <= hour < 12:
        return Spoken(surface=clock, value=value, calculated=_is_backwards(clock))
    part = _part_of_day(hour, rng, today=today)
    joint = " " if part[0] != " " and not clock[-1].isdigit() else ""
    return Spoken(surface=clock + joint + part, value=value, calculated=_is_backwards(clock))


def _clock(hour: int, minute: int, rng: random.Random) -> str:
    """The face of a 12-hour clock, hour 1 to 12, in words or digits."""
    said = rng.choice((_ONES[hour], str(hour), str(hour)))
    if minute == 0:
        return said + rng.choice(("", "", "", " o'clock", ":00" if said[0].isdigit() else " o'clock"))
    options = [f"{hour}:{minute:02d}"] * 4
    if minute >= 10:
        options += [f"{_ONES[hour]} {english_number(minute)}", f"{hour} {minute}"]
    else:
        options.append(f"{_ONES[hour]} oh {_ONES[minute]}")
    if rng.random() < (0.3 if minute % 15 == 0 else 0.12 if minute % 5 == 0 else 0):
        return _before_or_after(hour, minute, rng)
    return rng.choice(options)


def _before_or_after(hour: int, minute: int, rng: random.Random) -> str:
    """Half past six, quarter to seven, five after six."""
    if minute > 30 and hour == 11:  # "quarter to twelve am" could be a quarter to noon or to midnight
        return f"{hour}:{minute:02d}"
    near = minute if minute <= 30 else 60 - minute
    amount = {15: rng.choice(("quarter", "a quarter")), 30: "half"}.get(near)
    amount = amount or rng.choice((english_number(near), str(near)))
    if minute > 30:
        return f"{amount} {rng.choice(_BACKWARDS)} {_hour_name(hour % 12 + 1, rng)}"
    return f"{amount} {rng.choice(('past', 'past', 'past' if near == 30 else 'after'))} {_hour_name(hour, rng)}"


def _is_backwards(clock: str) -> bool:
    return any(f" {word} " in clock for word in _BACKWARDS)


def _hour_name(hour: int, rng: random.Random) -> str:
    return rng.choice((_ONES[hour], str(hour)))


def _part_of_day(hour: int, rng: random.Random, *, today: bool) -> str:
    if hour < 12:
        parts = ["am", " am", " a.m.", " AM", "AM", " in the morning", " in the morning"]
        parts += [" at night"] if hour < 4 else []
        of_today = [" this morning"] if hour > 4 else []
    else:
        parts = ["pm", " pm", " p.m.", " PM", "PM"]
        parts += [" in the afternoon"] * 2 if hour < 18 else []
        parts += [" in the evening"] if 16 < hour < 23 else []
        parts += [" at night"] if hour > 18 else []
        of_today = [" this afternoon"] if hour < 17 else [" this evening"] if hour < 23 else []
        of_today += [" tonight", " tonight"] if hour > 18 else []
    return rng.choice(parts + (of_today if today else []))


_DURATIONS = table(
    {
        1: "a minute, one minute, 1 minute",
        2: "a couple of minutes",
        15: "a quarter of an hour, quarter of an hour",
        30: "half an hour, a half hour, half hour",
        45: "three quarters of an hour",
        60: "an hour, one hour, 1 hour, 1 hr",
        90: "an hour and a half, 1.5 hours",
        120: "a couple of hours, 2 hrs, two hours",
    }
)


def english_minutes(rng: random.Random) -> Spoken:
    """A length of time in English, with whole minutes."""
    style = rng.random()
    if style < 0.14:
        return rng.choice(_DURATIONS)
    if style < 0.24:
        hours = rng.choice((1, 2, 2, 3, 4, 5, 6))
        said = rng.choice((str(hours), english_number(hours)))
        unit = "hour" if hours == 1 else rng.choice(("hours", "hours", "hrs"))
        return Spoken(surface=f"{said} {unit}", value=60 * hours)
    if style < 0.30:
        return _hours_and_minutes(rng)
    minutes = common_minutes(rng)
    if minutes <= 100 and rng.random() < 0.4:
        return Spoken(surface=f"{english_number(minutes)} {rng.choice(('minutes', 'minutes', 'mins'))}", value=minutes)
    unit = rng.choice((" minutes", " minutes", " mins", " min", "min"))
    return Spoken(surface=f"{minutes}{unit}", value=minutes)


def _hours_and_minutes(rng: random.Random) -> Spoken:
    hours, minutes = rng.choice((1, 1, 2, 3)), rng.choice((5, 10, 15, 20, 25, 30, 40, 45, 50))
    if minutes == 30 or rng.random() < 0.15:
        hours = rng.choice((1, 2, 2, 3, 4, 5))
        return Spoken(
            surface=f"{rng.choice((str(hours), english_number(hours)))} and a half hours",
            value=60 * hours + 30,
            calculated=True,
        )
    said = rng.choice(("an", "1", "one")) if hours == 1 else rng.choice((str(hours), english_number(hours)))
    unit = "hour" if hours == 1 else "hours"
    joint, rest = rng.choice((" and ", " ", " and ")), rng.choice((str(minutes), english_number(minutes)))
    return Spoken(surface=f"{said} {unit}{joint}{rest} minutes", value=60 * hours + minutes, calculated=True)


def english_length(rng: random.Random) -> Spoken:
    """A length of time as it stands before a noun: the words in "a 20 minute timer", with whole minutes."""
    joint = rng.choice((" ", " ", "-"))
    if rng.random() < 0.15:
        hours = rng.choice((1, 1, 2, 3))
        return Spoken(surface=f"{rng.choice((str(hours), english_number(hours)))}{joint}hour", value=60 * hours)
    minutes = common_minutes(rng)
    said = english_number(minutes) if minutes < 100 and rng.random() < 0.4 else str(minutes)
    return Spoken(surface=f"{said}{joint}{rng.choice(('minute', 'minute', 'minute', 'min'))}", value=minutes)


_LEVELS = {
    0: "zero, minimum, the minimum, the lowest, the lowest level, min",
    50: "half, halfway",
    100: "max, maximum, the max, the maximum, full, one hundred percent, the highest, the highest level",
}
_LEVEL_WORDS = table(_LEVELS)
_VOLUME_WORDS = _LEVEL_WORDS + table({0: "silent, the quietest", 100: "the loudest"})
_BRIGHTNESS_WORDS = _LEVEL_WORDS + table({0: "the darkest, the dimmest", 100: "the brightest"})


def english_level(rng: random.Random) -> Spoken:
    """A level between 0 and 100 in English."""
    return _level(_LEVEL_WORDS, rng)


def english_volume(rng: random.Random) -> Spoken:
    """Like `english_level`, with words for sound."""
    return _level(_VOLUME_WORDS, rng)


def english_brightness(rng: random.Random) -> Spoken:
    """Like `english_level`, with words for light."""
    return _level(_BRIGHTNESS_WORDS, rng)


def _level(words: tuple[Spoken, ...], rng: random.Random) -> Spoken:
    style = rng.random()
    if style < 0.16:
        return rng.choice(words)
    level = common_level(rng)
    if style < 0.4:
        return Spoken(surface=english_number(level) + rng.choice(("", " percent", " percent")), value=level)
    return Spoken(surface=f"{level}{rng.choice(('', '', '%', '%', ' percent', ' %'))}", value=level)


def english_date(rng: random.Random) -> Spoken:
    """A day: today, tomorrow, or a full date, in English."""
    style = rng.random()
    if style < 0.62:
        word = rng.choice(("today", "tomorrow", "tomorrow"))
        return Spoken(surface=word, value=word)
    year, month, day = calendar_day(rng)
    iso = f"{year}-{month:02d}-{day:02d}"
    if style < 0.85:
        return Spoken(surface=iso, value=iso)
    name = rng.choice((_MONTHS[month - 1], _MONTHS[month - 1], _MONTHS[month - 1][:3]))
    ordinal = f"{day}{_ordinal_ending(day)}"
    said = rng.choice((str(day), ordinal))
    day_first = (f"{said} {name} {year}", f"the {ordinal} of {name} {year}")
    surface = rng.choice((f"{name} {said}, {year}", f"{name} {said} {year}", *day_first))
    return Spoken(surface=surface, value=iso, calculated=True)


def _ordinal_ending(day: int) -> str:
    return "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
