"""YAML reads as people expect, mistakes name their line, and what is written reads back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leveret.errors import ConfigError
from leveret.yaml_files import apply_overrides, dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-.inf", float("-inf")), ("12", 12), ("-7", -7),
        ("012", 12), ("0x10", 16), ("0o17", 15), ("true", True), ("FALSE", False), ("null", None), ("~", None),
        ("", None), ("on", "on"), ("no", "no"), ("07:30", "07:30"), ("2026-01-31", "2026-01-31"), ("1_000", "1_000"),
        ("'true'", "true"), ("-", [None]), ("1.2.3", "1.2.3"), ("[1, a]", [1, "a"]), ("你好", "你好"),
    ],
)  # fmt: skip
def test_plain_words_mean_what_they_look_like(text: str, value: Any) -> None:
    read = parse_yaml(text, source="test")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "x:4: the key 'c' was already given on line 3"),
        ("a: 1\nb: [1\nc: 2", "x:3: expected ',' or ']'"),
        ("a: 1\n b: 2", "x:2: mapping values are not allowed here"),
        ("a: !!python/object:os.system x", "x:1: could not determine a constructor"),
        ("stages:\n  - pretrain: &p {documents: [*p]}", "x: stages.0.pretrain.documents.0: an anchor"),
        ("a: " + "[" * 5000 + "]" * 5000, "x: there are too many lists and mappings"),
    ],
)
def test_a_mistake_names_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, source="x")
    assert str(caught.value).startswith(message)


def test_an_anchor_used_often_is_fine_and_takes_no_time() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    assert parse_yaml(text, source="x")["a1"] == [["x", "x"], ["x", "x"]]


def test_merge_keys_work() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", source="x")["b"] == {"x": 1, "y": 2}


def test_a_missing_file_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").touch()
    assert read_yaml(tmp_path / "demo.yaml") == {}
    with pytest.raises(ConfigError, match=r"there is no file .*dmo.yaml\nhint: did you mean .*demo.yaml"):
        read_yaml(tmp_path / "dmo.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds a list"):
        read_yaml(tmp_path / "list.yaml")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@example({"\x85": "\u2028", "\u2029 a": ["\r\n"]})
@given(values)
def test_what_is_dumped_reads_back_the_same(value: Any) -> None:
    assert parse_yaml(dump_yaml(value), source="dump") == value


def test_a_long_text_is_dumped_on_one_line() -> None:
    command = "ssh 10.0.0.1 'cd models && exec " + "run " * 60 + "recipe.yaml'"
    assert command in dump_yaml({"starts": [{"command": command}]})


@pytest.mark.parametrize("word", ["1e-3", "07:30", "on", "null", "1.", "0x1f", "<<", "~", "2026-01-31", "=", "0o7"])
def test_words_that_look_like_something_else_read_back_as_words(word: str) -> None:
    assert parse_yaml(dump_yaml({"a": word}), source="dump") == {"a": word}


def test_overrides_set_nested_keys_on_a_copy() -> None:
    data: dict[str, Any] = {"a": {"b": 1}, "list": [{"x": 1}, 2]}
    changed = apply_overrides(data, ["a.b=1e-4", "a.c=[1, 2]", "new.key=a=b", "off=", "list.0.x=5", "list.1=null"])
    assert changed == {
        "a": {"b": 1e-4, "c": [1, 2]}, "list": [{"x": 5}, None], "new": {"key": "a=b"}, "off": None,
    }  # fmt: skip
    assert data == {"a": {"b": 1}, "list": [{"x": 1}, 2]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "is not an override"),
        ("a..b=1", "is not an override"),
        ("a.b.c=1", "'b' holds the value 1"),
        ("list.5=1", "position from 0 to 1"),
        ("a=[1", "the value of a:1"),
    ],
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"a": {"b": 1}, "list": [1, 2]}, [override])
