"""A value and one way to say it, and what English and Chinese have in common: phone numbers, minutes, calendar days."""

from __future__ import annotations

import random
from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A value and one way to say it."""

    surface: str
    value: str | int
    calculated: bool = False
    """Whether the value must be worked out: a quarter to seven, 差一刻七点, the 3rd of May 2027."""


def table(ways: Mapping[int, str]) -> tuple[Spoken, ...]:
    """Fixed expressions from {value: "one way, another way"}."""
    return tuple(Spoken(surface=way, value=value) for value, text in ways.items() for way in text.split(", "))


def common_minute(rng: random.Random) -> int:
    """The minute of a time of day: most often a full, half or quarter hour."""
    rounds = (*(0,) * 7, *(30,) * 4, 15, 15, 45, 45, 5, 10, 20, 25, 35, 40, 50, 55)
    return rng.choice((*rounds, rng.randrange(60)))


def common_hour(rng: random.Random) -> int:
    """The hour of a time of day, 0 to 23: each of them, those at which people get up and meet more often."""
    often = (6, 6, 7, 7, 7, 8, 8, 9, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 18, 19, 19, 20, 20, 21, 22)
    return rng.choice(often) if rng.random() < 0.6 else rng.randrange(24)


def common_minutes(rng: random.Random) -> int:
    """A length of time in minutes, 2 to 179: most often a round one."""
    rounds = (5, 10, 15, 20, 25, 30, 40, 45, 60)
    return rng.choice((*rounds, rng.randrange(2, 100), rng.randrange(2, 60), rng.randrange(2, 180)))


def common_level(rng: random.Random) -> int:
    """A level, 0 to 100: most often a round one."""
    rounds = (10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 100)
    return rng.choice((*rounds, rng.randrange(101), rng.randrange(101), rng.randrange(101)))


def calendar_day(rng: random.Random) -> tuple[int, int, int]:
    """Year, month and day of the month of a day from 2025 to 2030."""
    year, month = rng.randrange(2025, 2031), rng.randrange(1, 13)
    return year, month, rng.randrange(1, monthrange(year, month)[1] + 1)


def phone_number(rng: random.Random) -> Spoken:
    """A phone number, value as typed: short service numbers, mobile numbers, separated and international ones."""
    digits = "".join(rng.choice("0123456789") for _ in range(10))
    first, second, third = digits[:3], digits[3:6], digits[6:]
    style = rng.random()
    if style < 0.2:
        services = ("911", "110", "112", "119", "120", "999", "10086", "10010", "12306", "95588")
        number = rng.choice((*services, digits[:3], digits[:4], digits[:5]))
    elif style < 0.45:
        number = f"1{rng.choice('3456789')}{digits[:9]}"
    elif style < 0.7:
        local = (f"{first}-{digits[3:7]}", f"555-{digits[:4]}", f"0{digits[:2]}-{digits[2:]}")
        far = (f"{first}-{second}-{third}", f"{first} {second} {third}", f"1-800-{first}-{digits[3:7]}")
        number = rng.choice(local + far)
    elif style < 0.82:
        plain, spaced = rng.choice(("1", "44", "86", "49", "33", "81")), rng.choice(("1", "44", "86"))
        number = rng.choice((f"+{plain}{digits}", f"+{spaced} {digits}", f"+1-{first}-{second}-{third}"))
    else:
        number = digits[: rng.randrange(6, 11)]
    return Spoken(surface=number, value=number)
