"""Calls become intents on paper, and hostile arguments stay arguments."""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta, timezone

import pytest

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.android import plan
from leveret.tools.schema import ToolSet

NOW = datetime(2026, 3, 1, 22, 0, tzinfo=timezone(timedelta(hours=8)))

GOLDEN = [
    ("make_phone_call", {"phone_number": "+86 138#"}, "-a android.intent.action.CALL -d tel:+86%20138%23", True),
    ("call_contact", {"name": "张伟"}, "-a android.intent.action.CALL -d tel:%E5%BC%A0%E4%BC%9F", True),
    (
        "send_text_message",
        {"name": "Bob", "message": "I'm late"},
        "-a android.intent.action.SENDTO -d smsto:Bob --es sms_body 'I'\"'\"'m late'",
        True,
    ),
    (
        "send_email",
        {"recipient": "a@b.c", "subject": "S", "body": "B"},
        "-a android.intent.action.SENDTO -d mailto:a@b.c "
        "--es android.intent.extra.SUBJECT S --es android.intent.extra.TEXT B",
        True,
    ),
    ("search_web", {"query": "hares"}, "-a android.intent.action.WEB_SEARCH --es query hares", False),
    (
        "take_photo",
        {"camera": "front"},
        "-a android.media.action.STILL_IMAGE_CAMERA --ei android.intent.extras.CAMERA_FACING 1",
        False,
    ),
    (
        "get_weather",
        {"location": "Paris", "day": "today"},
        "-a android.intent.action.WEB_SEARCH --es query 'weather Paris today'",
        False,
    ),
    (
        "set_alarm",
        {"time": "07:30", "label": "gym"},
        "-a android.intent.action.SET_ALARM --ei android.intent.extra.alarm.HOUR 7 "
        "--ei android.intent.extra.alarm.MINUTES 30 --ez android.intent.extra.alarm.SKIP_UI true "
        "--es android.intent.extra.alarm.MESSAGE gym",
        False,
    ),
    (
        "set_timer",
        {"minutes": 5},
        "-a android.intent.action.SET_TIMER --ei android.intent.extra.alarm.LENGTH 300 "
        "--ez android.intent.extra.alarm.SKIP_UI true",
        False,
    ),
    ("set_volume", {"level": 40}, "-a android.settings.panel.action.VOLUME --ei level 40", False),
    ("set_brightness", {"level": 40}, "-a android.settings.DISPLAY_SETTINGS --ei level 40", False),
    (
        "play_music",
        {"name": "Bach"},
        "-a android.media.action.MEDIA_PLAY_FROM_SEARCH --es query Bach "
        "--es android.intent.extra.focus 'vnd.android.cursor.item/*'",
        False,
    ),
    (
        "find_route",
        {"destination": "the zoo", "mode": "transit"},
        "-a android.intent.action.VIEW "
        "-d 'https://www.google.com/maps/dir/?api=1&destination=the+zoo&travelmode=transit'",
        False,
    ),
    (
        "create_event",
        {"title": "gym", "date": "tomorrow", "time": "10:00"},
        "-a android.intent.action.INSERT -d content://com.android.calendar/events --es title gym "
        "--el beginTime 1772416800000",
        False,
    ),
    ("open_app", {"name": "Maps"}, "-a android.intent.action.MAIN", False),
    (
        "toggle_setting",
        {"setting": "bluetooth", "on": True},
        "-a android.settings.BLUETOOTH_SETTINGS --ez on true",
        False,
    ),
]


@pytest.mark.parametrize(("name", "arguments", "command", "confirmation"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_each_phone_function_has_its_intent(name: str, arguments: dict, command: str, confirmation: bool) -> None:
    intent = plan(ToolCall(name, arguments), now=NOW)
    assert " ".join(intent.command()) == f"adb shell am start {command}"
    assert intent.needs_confirmation == confirmation


def test_every_phone_function_has_a_golden_row(phone: ToolSet) -> None:
    assert tuple(row[0] for row in GOLDEN) == phone.names


@pytest.mark.parametrize(
    "hostile", ["'; reboot #", "$(reboot)", "`reboot`", "a\nreboot", "--user 0", '"', "\\", "&& ls"]
)
def test_hostile_arguments_reach_the_phone_as_one_word(hostile: str) -> None:
    command = plan(ToolCall("send_text_message", {"name": hostile, "message": hostile}), now=NOW).command()
    words = shlex.split(" ".join(command[2:]))
    assert words[:2] == ["am", "start"] and words[-2:] == ["sms_body", hostile]
    assert len(words) == 9
    number = plan(ToolCall("make_phone_call", {"phone_number": hostile}), now=NOW)
    assert number.data is not None and not set(number.data) & set(" ;$`'\"\n&\\#")


def test_names_must_be_looked_up_and_addresses_not() -> None:
    assert plan(ToolCall("call_contact", {"name": "Bob"})).lookup == ("contact", "Bob")
    mail = {"recipient": "a@b.c", "subject": "", "body": ""}
    assert plan(ToolCall("send_email", mail)).lookup is None
    assert plan(ToolCall("open_app", {"name": "Maps"})).to_json()["lookup"] == {"kind": "app", "name": "Maps"}


def test_what_has_no_intent_says_so() -> None:
    torch = plan(ToolCall("toggle_setting", {"setting": "flashlight", "on": True}))
    with pytest.raises(ToolError, match="setTorchMode"):
        torch.command()
    quiet = plan(ToolCall("toggle_setting", {"setting": "do_not_disturb", "on": False}))
    assert quiet.extras == {"android.settings.extra.do_not_disturb_mode_enabled": False}


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("self_destruct", {}, "no Android plan"),
        ("set_timer", {}, "'minutes' is missing"),
        ("take_photo", {"camera": "side"}, "'side' is missing or unknown"),
        ("set_alarm", {"time": "soon"}, "cannot be planned"),
        ("create_event", {"title": "x", "date": "someday", "time": "10:00"}, "cannot be planned"),
        ("set_timer", {"minutes": "5"}, "minutes must be a whole number from 1 to 10080, not '5'"),
        ("set_timer", {"minutes": True}, "not True"),
        ("set_volume", {"level": 300}, "level must be a whole number from 0 to 100, not 300"),
        ("toggle_setting", {"setting": "wifi", "on": "yes"}, "on must be true or false, not 'yes'"),
        ("set_alarm", {"time": "25:99"}, "25:99"),
        ("make_phone_call", {"phone_number": 5}, "phone_number must be a text, not 5"),
        ("play_music", {"name": None}, "name must be a text, not None"),
    ],
)
def test_calls_that_cannot_be_planned_are_refused(name: str, arguments: dict, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        plan(ToolCall(name, arguments), now=NOW)


def test_no_command_line_carries_a_nul() -> None:
    with pytest.raises(ToolError, match="NUL"):
        plan(ToolCall("search_web", {"query": "a\0b"})).command()
