"""Request files are read line by line, mistakes named by file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from leveret.chat.messages import ToolCall
from leveret.errors import DataError
from leveret.tools.requests import ToolRequest, read_requests, write_requests
from leveret.tools.schema import ToolSet


def test_requests_are_read_back_as_written(tmp_path: Path, phone: ToolSet) -> None:
    requests = [
        ToolRequest(query="明天上海天气？", calls=(ToolCall("get_weather", {"location": "上海", "day": "tomorrow"}),)),
        ToolRequest(query="line\u2028break", calls=(), group="odd"),
    ]
    write_requests(tmp_path / "r.jsonl", requests)
    assert read_requests(tmp_path / "r.jsonl", phone) == requests


def test_requests_may_be_compressed(tmp_path: Path, phone: ToolSet) -> None:
    write_requests(tmp_path / "r.jsonl", [ToolRequest(query="line\u2028break", calls=())])
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "r.jsonl").read_bytes()))
    assert read_requests(packed, phone) == read_requests(tmp_path / "r.jsonl", phone)
    packed.write_bytes(b"{}")
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_requests(packed)


def test_blank_lines_and_other_keys_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('\ufeff\n{"query": "hi", "calls": [], "author": "me"}\r\n\n', encoding="utf-8")
    assert read_requests(file) == [ToolRequest(query="hi", calls=())]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", 'needs a "query"'),
        ('{"query": " ", "calls": []}', 'needs a "query"'),
        ('{"query": "x"}', 'needs "calls"'),
        ('{"query": "x", "calls": [{"arguments": {}}]}', 'needs a "name"'),
        ('{"query": "x", "calls": [{"name": "set_timer", "arguments": []}]}', "must be an object"),
        ('{"query": "x", "calls": [{"name": "set_timer", "arguments": {"minutes": "5"}}]}', "must be an integer"),
        ('{"query": "x", "calls": [{"name": "set_timer", "parameters": {"minutes": 5}}]}', "stand under 'parameters'"),
        ('{"query": "x", "calls": [{"name": "set_timer", "arguments": {"minutes": NaN}}]}', "not JSON"),
        ('{"query": "x", "calls": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON: maximum recursion depth"),
        ('{"query": "x", "calls": [], "place": ' + "9" * 5_000 + "}", "not JSON: Exceeds the limit"),
        ('{"query": "x", "calls": [], "group": 3}', '"group" must be a text'),
        ('{"query": "x", "calls": [{"name": "set_tmer", "arguments": {}}]}', "unknown tool 'set_tmer'"),
    ],
)
def test_a_mistake_is_named_by_file_and_line(tmp_path: Path, phone: ToolSet, line: str, reason: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"query": "fine", "calls": []}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_requests(file, phone)
    assert f"{file}:2:" in str(caught.value) and reason in str(caught.value)


def test_a_missing_or_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_requests(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no requests"):
        read_requests(tmp_path / "empty.jsonl")


def test_half_a_character_in_a_request_is_told_before_anything_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for line in (r'{"query": "\ud83d", "calls": []}', r'{"query": "a", "calls": [{"name": "\ud83d"}]}'):
        path.write_text('{"query": "\\ud83d\\udc22", "calls": []}\n' + line)
        with pytest.raises(DataError, match=r"r\.jsonl:2.*lone surrogate"):
            read_requests(path)
