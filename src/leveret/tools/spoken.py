"""The kinds of values that are said rather than listed: times, durations, levels, dates and phone numbers.

`SPOKEN[language][kind]` draws a value together with one way to say it. `clock_time` is a time beside a date ("tonight"
would contradict it), `length` a duration before a noun ("a 20 minute timer"), `volume` and `brightness` are levels with
words of their own. A new language is one file of such functions and one entry here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from leveret.tools import spoken_chinese, spoken_english
from leveret.tools.spoken_value import Spoken, phone_number

__all__ = ["SPOKEN", "Spoken"]

SPOKEN: Mapping[str, Mapping[str, Callable[[random.Random], Spoken]]] = {
    "en": {
        "time": spoken_english.english_time,
        "clock_time": spoken_english.english_clock_time,
        "minutes": spoken_english.english_minutes,
        "length": spoken_english.english_length,
        "level": spoken_english.english_level,
        "volume": spoken_english.english_volume,
        "brightness": spoken_english.english_brightness,
        "date": spoken_english.english_date,
        "phone": phone_number,
    },
    "zh": {
        "time": spoken_chinese.chinese_time,
        "clock_time": spoken_chinese.chinese_clock_time,
        "minutes": spoken_chinese.chinese_minutes,
        "level": spoken_chinese.chinese_level,
        "volume": spoken_chinese.chinese_volume,
        "brightness": spoken_chinese.chinese_brightness,
        "date": spoken_chinese.chinese_date,
        "phone": phone_number,
    },
}
"""Language -> kind of value -> how it is said."""
