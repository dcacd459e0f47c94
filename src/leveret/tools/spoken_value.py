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


_SERVICES = ("911", "110", "112", "119", "120", "999", "10086", "10010", "12306", "95588", "NNN", "NNNN", "NNNNN")
_MOBILES = (*("1MNNNNNNNNN",) * 3, "1MN NNNN NNNN", "1MN-NNNN-NNNN", "+86 1MN NNNN NNNN", "+861MNNNNNNNNN")
_LOCAL = (
    *("NNN-NNNN", "555-NNNN", "0NN-NNNNNNNN", "0NN-NNNN NNNN", "0NNN NNNNNNN", "NNN-NNN-NNNN", "NNN NNN NNNN"),
    *("(NNN) NNN-NNNN", "(NNN) NNN NNNN", "NNN.NNN.NNNN", "1-800-NNN-NNNN", "0NNN NNN NNNN", "NN NN NN NN NN"),
)
_FOREIGN = (
    *(
        "+1 (NNN) NNN-NNNN",
        "+1-NNN-NNN-NNNN",
        "+1 NNN NNN NNNN",
        "+44 NN NNNN NNNN",
        "+44 7NNN NNNNNN",
        "+49 NN NNNNNN",
    ),
    *("+33 N NN NN NN NN", "+81 N NNNN NNNN", "+86 NN NNNN NNNN", "+61 NNN NNN NNN", "+852 NNNN NNNN", "+65 NNNN NNNN"),
    *("+1NNNNNNNNNN", "+44NNNNNNNNNN", "+33NNNNNNNNN", "+86 NNNNNNNNNN", "+34 NNN NNN NNN", "+39 NNN NNNNNNN"),
)


def phone_number(rng: random.Random) -> Spoken:
    """A phone number, value as typed: short service numbers, mobile numbers, separated and international ones."""
    kind = rng.choices((_SERVICES, _MOBILES, _LOCAL, _FOREIGN, ("N" * rng.randrange(6, 12),)), (17, 23, 25, 22, 13))[0]
    digits = {"N": "0123456789", "M": "3456789"}
    number = "".join(rng.choice(digits.get(mark, mark)) for mark in rng.choice(kind))
    return Spoken(surface=number, value=number)
