"""Keys of messages that nobody reads are counted and told, with the place of the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leveret.chat.messages import READ_KEYS, messages_from
from leveret.data.files import ReadReport
from leveret.data.readers import read_conversations, read_preferences
from leveret.data.unread_keys import unread_line

USER, REPLY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
CALL = {"function": {"name": "f", "arguments": {}}}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "unread"),
    [
        ({"messages": [USER, {**REPLY, "thinking": "hm", "weigth": 0}]}, {"thinking": 1, "weigth": 1}),
        ({"messages": [USER, {**REPLY, "trainable": False}]}, {"trainable": 1}),
        ({"messages": [USER, {**REPLY, "refusal": None, "images": [], "audio": {}, "note": ""}]}, {}),
        ({"messages": [USER, {**REPLY, "name": "n", "weight": 1, "reasoning_content": "hm"}]}, {}),
        (
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a", "tool_calls": [CALL]}]},
            {"tool_calls": 1},
        ),
        ({"conversations": [USER, {**REPLY, "tool_calls": [CALL]}]}, {}),
        ({"conversations": [USER, {"role": "助手", "content": "a", "tool_calls": [CALL]}]}, {}),
        ({"conversations": [{"role": "human", "content": "u", "name": "n"}, REPLY]}, {"name": 1}),
        ({"conversation": [{"human": "u", "assistant": "a", "score": 1}]}, {"score": 1}),
        ({"prompt": [USER], "completion": [{**REPLY, "id": 3}]}, {"id": 1}),
        ({"instruction": "u", "output": "a", "id": 3}, {}),
    ],
)
def test_what_no_reader_looks_at_is_counted_by_name(record: Any, unread: dict[str, int], tmp_path: Path) -> None:
    report = ReadReport()
    assert len(list(read_conversations(write(tmp_path / "x.jsonl", record), report))) == 1
    assert report.unread == unread
    assert (unread_line(report) is None) == (not unread)


def test_the_line_names_keys_counts_the_first_place_and_what_may_have_been_meant(tmp_path: Path) -> None:
    odd = {"messages": [USER, {**REPLY, "weigth": 0, "id": "7"}]}
    report = ReadReport()
    path = write(tmp_path / "x.jsonl", {"messages": [USER, REPLY]}, odd, odd)
    list(read_conversations(path, report))
    assert unread_line(report) == (
        f"nothing reads 'weigth' (2; did you mean 'weight'?), 'id' (2) in messages; first at {path}:2"
    )


def test_both_sides_of_a_preference_are_looked_at(tmp_path: Path) -> None:
    report = ReadReport()
    worse = {"from": "gpt", "value": "b", "score": 2}
    path = write(tmp_path / "x.jsonl", {"prompt": "u", "chosen": {"from": "gpt", "value": "a"}, "rejected": worse})
    list(read_preferences(path, report))
    assert report.unread == {"score": 1}


def test_every_key_that_is_said_to_be_read_is_read() -> None:
    class Watched(dict[str, Any]):
        asked: set[str] = set()  # noqa: RUF012

        def get(self, key: str, default: Any = None) -> Any:
            self.asked.add(key)
            return super().get(key, default)

    messages_from([Watched(USER)])
    assert Watched.asked == READ_KEYS
