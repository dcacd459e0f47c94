"""What a phone would do for a call: a plan of Android intents that is only shown, never run.

An intent names an action, a data URI and typed extras (developer.android.com/guide/components/intents-common). `plan`
turns a call of the phone tools into one, and `IntentPlan.command` into the arguments of `adb shell am start`. The shell
on the phone reads that line again, so every argument is quoted for it, and data URIs are percent-encoded: a message
like `'; reboot` stays a message. Nothing here starts a process.

Names of contacts and apps are looked up on the phone: a plan with a `lookup` is complete only when that has put the
number, address or package in the name's place. Where Android offers no intent, `note` says which API an app must use.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, urlencode

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError

Extra = str | int | bool
_INT_LIMIT = 2**31
_RANGES = {"minutes": (1, 10080), "level": (0, 100)}
"""Arguments that are whole numbers, and from where to where they go."""
_SWITCHES = ("on",)
_OPTIONAL = ("label",)


@dataclass(frozen=True, kw_only=True)
class IntentPlan:
    """One intent, as it would be sent."""

    action: str | None
    """None when no intent does this; see `note`."""
    data: str | None = None
    extras: Mapping[str, Extra] = field(default_factory=dict)
    needs_confirmation: bool = False
    """True for what reaches other people: calls, messages, mails. Ask before sending the intent."""
    lookup: tuple[Literal["contact", "app"], str] | None = None
    """A name to look up on the phone first."""
    note: str | None = None

    def command(self) -> list[str]:
        """The argument list that would send it through adb; ToolError when there is no intent."""
        if self.action is None:
            raise ToolError(f"there is no intent for this: {self.note}")
        words = ["-a", self.action]
        if self.data is not None:
            words += ["-d", self.data]
        for key, value in self.extras.items():
            words += [_extra_flag(value), key, str(value).lower() if isinstance(value, bool) else str(value)]
        if any("\0" in word for word in words):
            raise ToolError("an argument holds a NUL character, which no command line can carry")
        return ["adb", "shell", "am", "start", *map(shlex.quote, words)]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; absent things left out."""
        fields = {
            "action": self.action,
            "data": self.data,
            "extras": dict(self.extras) or None,
            "needs_confirmation": self.needs_confirmation,
            "lookup": None if self.lookup is None else {"kind": self.lookup[0], "name": self.lookup[1]},
            "note": self.note,
        }
        return {key: value for key, value in fields.items() if value is not None}


def plan(call: ToolCall, *, now: datetime | None = None) -> IntentPlan:
    """The intent for a call of the phone tools; `now` (default: the clock) says what today means, with its time zone.

    Raises ToolError for an unknown tool, a missing argument or one of the wrong kind.
    """
    if call.name not in _PLANS:
        raise ToolError(f"no Android plan for the tool {call.name!r}", hint=f"known: {', '.join(_PLANS)}")
    try:
        _require_kinds(call.arguments)
        return _PLANS[call.name](call.arguments, now or datetime.now().astimezone())
    except KeyError as error:
        raise ToolError(f"{call.name} cannot be planned: {error} is missing or unknown") from None
    except (TypeError, ValueError) as error:
        raise ToolError(f"{call.name} cannot be planned: {error}") from None


def _require_kinds(arguments: Mapping[str, Any]) -> None:
    """ValueError names an argument of the wrong kind: a command line takes everything, and the phone something else."""
    for name, value in arguments.items():
        if name in _RANGES:
            low, high = _RANGES[name]
            fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            wanted = f"a whole number from {low} to {high}"
        elif name in _SWITCHES:
            fits, wanted = isinstance(value, bool), "true or false"
        else:
            fits, wanted = isinstance(value, str) or (value is None and name in _OPTIONAL), "a text"
        if not fits:
            raise ValueError(f"{name} must be {wanted}, not {value!r}")


def _make_phone_call(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    number = quote(arguments["phone_number"], safe="+*")
    return IntentPlan(action="android.intent.action.CALL", data=f"tel:{number}", needs_confirmation=True)


def _call_contact(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    name = arguments["name"]
    data = f"tel:{quote(name, safe='')}"
    return IntentPlan(action="android.intent.action.CALL", data=data, lookup=("contact", name), needs_confirmation=True)


def _send_text_message(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    name = arguments["name"]
    return IntentPlan(
        action="android.intent.action.SENDTO",
        data=f"smsto:{quote(name, safe='')}",
        extras={"sms_body": arguments["message"]},
        lookup=("contact", name),
        needs_confirmation=True,
    )


def _send_email(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    recipient = arguments["recipient"]
    return IntentPlan(
        action="android.intent.action.SENDTO",
        data=f"mailto:{quote(recipient, safe='@')}",
        extras={
            "android.intent.extra.SUBJECT": arguments["subject"],
            "android.intent.extra.TEXT": arguments["body"],
        },
        lookup=None if "@" in recipient else ("contact", recipient),
        needs_confirmation=True,
    )


def _search_web(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    return IntentPlan(action="android.intent.action.WEB_SEARCH", extras={"query": arguments["query"]})


def _take_photo(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    facing = {"rear": 0, "front": 1}[arguments["camera"]]
    return IntentPlan(
        action="android.media.action.STILL_IMAGE_CAMERA", extras={"android.intent.extras.CAMERA_FACING": facing}
    )


def _get_weather(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    query = f"weather {arguments['location']} {arguments['day']}"
    return IntentPlan(action="android.intent.action.WEB_SEARCH", extras={"query": query})


def _set_alarm(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    clock = datetime.strptime(arguments["time"], "%H:%M")
    extras: dict[str, Extra] = {
        "android.intent.extra.alarm.HOUR": clock.hour,
        "android.intent.extra.alarm.MINUTES": clock.minute,
        "android.intent.extra.alarm.SKIP_UI": True,
    }
    if arguments.get("label") is not None:
        extras["android.intent.extra.alarm.MESSAGE"] = arguments["label"]
    return IntentPlan(action="android.intent.action.SET_ALARM", extras=extras)


def _set_timer(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    extras: dict[str, Extra] = {
        "android.intent.extra.alarm.LENGTH": arguments["minutes"] * 60,
        "android.intent.extra.alarm.SKIP_UI": True,
    }
    return IntentPlan(action="android.intent.action.SET_TIMER", extras=extras)


def _set_volume(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    return IntentPlan(
        action="android.settings.panel.action.VOLUME",
        extras={"level": arguments["level"]},
        note="an intent only opens the panel; an app sets the level with AudioManager.setStreamVolume",
    )


def _set_brightness(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    return IntentPlan(
        action="android.settings.DISPLAY_SETTINGS",
        extras={"level": arguments["level"]},
        note="an intent only opens the page; an app sets the level with Settings.System.SCREEN_BRIGHTNESS",
    )


def _play_music(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    extras: dict[str, Extra] = {"query": arguments["name"], "android.intent.extra.focus": "vnd.android.cursor.item/*"}
    return IntentPlan(action="android.media.action.MEDIA_PLAY_FROM_SEARCH", extras=extras)


def _find_route(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    mode = {"drive": "driving", "walk": "walking", "transit": "transit"}[arguments["mode"]]
    query = urlencode({"api": 1, "destination": arguments["destination"], "travelmode": mode})
    return IntentPlan(action="android.intent.action.VIEW", data=f"https://www.google.com/maps/dir/?{query}")


def _create_event(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    days = {"today": 0, "tomorrow": 1}.get(arguments["date"])
    date = arguments["date"] if days is None else (now + timedelta(days=days)).date().isoformat()
    begin = datetime.fromisoformat(f"{date}T{arguments['time']}").replace(tzinfo=now.tzinfo)
    return IntentPlan(
        action="android.intent.action.INSERT",
        data="content://com.android.calendar/events",
        extras={"title": arguments["title"], "beginTime": int(begin.timestamp() * 1000)},
    )


def _open_app(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    return IntentPlan(
        action="android.intent.action.MAIN",
        lookup=("app", arguments["name"]),
        note="the package found by PackageManager goes into the intent with -p",
    )


def _toggle_setting(arguments: Mapping[str, Any], now: datetime) -> IntentPlan:
    on = arguments["on"]
    if arguments["setting"] == "flashlight":
        return IntentPlan(action=None, note="no intent switches the torch; an app uses CameraManager.setTorchMode")
    if arguments["setting"] == "do_not_disturb":
        return IntentPlan(
            action="android.settings.VOICE_CONTROL_DO_NOT_DISTURB_MODE",
            extras={"android.settings.extra.do_not_disturb_mode_enabled": on},
        )
    pages = {"wifi": "android.settings.panel.action.WIFI", "bluetooth": "android.settings.BLUETOOTH_SETTINGS"}
    return IntentPlan(
        action=pages[arguments["setting"]],
        extras={"on": on},
        note="an intent only opens the page: since Android 10 apps cannot switch this themselves",
    )


def _extra_flag(value: Extra) -> str:
    if isinstance(value, bool):
        return "--ez"
    if isinstance(value, int):
        return "--ei" if abs(value) < _INT_LIMIT else "--el"
    return "--es"


_PLANS: Mapping[str, Callable[[Mapping[str, Any], datetime], IntentPlan]] = {
    "make_phone_call": _make_phone_call,
    "call_contact": _call_contact,
    "send_text_message": _send_text_message,
    "send_email": _send_email,
    "search_web": _search_web,
    "take_photo": _take_photo,
    "get_weather": _get_weather,
    "set_alarm": _set_alarm,
    "set_timer": _set_timer,
    "set_volume": _set_volume,
    "set_brightness": _set_brightness,
    "play_music": _play_music,
    "find_route": _find_route,
    "create_event": _create_event,
    "open_app": _open_app,
    "toggle_setting": _toggle_setting,
}
