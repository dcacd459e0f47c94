"""Readers: every format in, one form out, and a wrong record named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import ChatTemplate, builtin_template
from leveret.data.examples import Conversation
from leveret.data.files import ReadReport
from leveret.data.readers import read_conversations, read_documents, read_preferences
from leveret.data.samples import render_sample
from leveret.errors import DataError, TemplateError
from leveret.tokenizer.files import Tokenizer

S, U, A = Message("system", "s"), Message("user", "u"), Message("assistant", "a")
U2, A2 = Message("user", "再"), Message("assistant", "见")
CALL = Message("assistant", "", tool_calls=(ToolCall("f", {"x": 1}),))
CALL_TEXT = '{"name": "f", "arguments": {"x": 1}}'
SIDES = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def m(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS: list[tuple[str, dict[str, Any], list[Message]]] = [
    ("messages", {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, [U, A]),
    (
        "sharegpt",
        {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "u"},
                {"from": "function_call", "value": CALL_TEXT},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ],
        },
        [S, U, CALL, Message("tool", "1"), A],
    ),
    (
        "sharegpt",
        {"conversations": [m("user", "u"), m("tool_call", CALL_TEXT), m("tool_response", "1"), m("assistant", "a")]},
        [U, CALL, Message("tool", "1"), A],
    ),
    (
        "messages",
        {
            "messages": [
                m("user", "u"),
                {**m("assistant", ""), "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                m("function", "1"),
                m("assistant", "a"),
            ]
        },
        [U, CALL, Message("tool", "1"), A],
    ),
    (
        "sharegpt",
        {"id": "7", "conversations": [{"from": "user", "value": "u"}, {"from": "model", "value": "a"}]},
        [U, A],
    ),
    (
        "firefly",
        {"system": "s", "conversation": [{"human": "u", "assistant": "a"}, {"human": "再", "assistant": "见"}]},
        [S, U, A, U2, A2],
    ),
    ("alpaca", {"instruction": "u", "input": "", "output": "a"}, [U, A]),
    (
        "alpaca",
        {"instruction": "do", "input": "it", "output": "a", "system": "s", "history": [["u", "a"]]},
        [S, U, A, Message("user", "do\nit"), A],
    ),
    ("prompt-completion", {"prompt": "u", "completion": "a"}, [U, A]),
    ("prompt-completion", {"query": "u", "response": "a"}, [U, A]),
    ("prompt-completion", {"prompt": [m("user", "u")], "completion": "a", "system": "s"}, [S, U, A]),
    ("prompt-completion", {"query": "再", "response": "见", "system": "s", "history": [["u", "a"]]}, [S, U, A, U2, A2]),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "u"},
                {"from": "gpt", "value": "a", "loss": False},
                {"from": "human", "value": "再"},
                {"from": "function_call", "value": CALL_TEXT, "weight": 0},
            ],
        },
        [U, replace(A, trained=False), U2, replace(CALL, trained=False)],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "a", "weight": 0},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
            ],
        },
        [U, replace(A, trained=False), CALL],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "系统", "value": "s"}, {"from": "用户", "value": "u"}, m("助手", "a")]},
        [S, U, A],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                m("用户", "u"),
                {**m("assistant", ""), "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                m("function", "1"),
                m("助手", "a"),
            ],
        },
        [U, CALL, Message("tool", "1"), A],
    ),
    (
        "prompt-completion",
        {"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}]},
        [U, A],
    ),
]


@pytest.mark.parametrize(("name", "record", "messages"), CONVERSATIONS)
def test_each_conversation_format_is_recognised(
    name: str, record: dict[str, Any], messages: list[Message], tmp_path: Path
) -> None:
    report = ReadReport()
    path = write(tmp_path / "data.jsonl", record)
    assert list(read_conversations(path, report)) == [Conversation(messages=tuple(messages), key=f"{path}:1")]
    assert report.formats == {name: 1}


def test_hidden_files_and_linked_folders_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("in/a.txt", "in/.b.txt", "in/.cache/c.txt", "elsewhere/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    report = ReadReport()
    assert [document.text for document in read_documents(tmp_path / "in", report)] == ["in/a.txt"]
    assert sorted(report.dropped.values()) == [1, 2]
    assert [document.text for document in read_documents(tmp_path / "in/link")] == ["elsewhere/d.txt"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_is_too_deep_is_a_wrong_record(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(DataError, match="too many brackets"):
        list(read_documents(tmp_path / name))


def test_formats_may_be_mixed_in_lists_compressed_and_in_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.json").write_text(json.dumps([record for _, record, _ in CONVERSATIONS]))
    with gzip.open(tmp_path / "b" / "c.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for _, record, _ in CONVERSATIONS)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "picture.png").write_bytes(b"x")
    report = ReadReport()
    read = list(read_conversations(tmp_path, report))
    assert [list(conversation.messages) for conversation in read] == [messages for _, _, messages in CONVERSATIONS] * 2
    assert report.num_files == 2 and report.num_records == len(read) == 2 * len(CONVERSATIONS)
    assert set(report.dropped) == {"text files beside the records", "files of a kind that is not read"}
    assert any("alpaca" in line for line in report.lines())


def test_tools_come_as_a_list_or_as_json_text(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    path = write(
        tmp_path / "x.jsonl", {"messages": messages, "tools": tools}, {"messages": messages, "tools": json.dumps(tools)}
    )
    assert [conversation.tools for conversation in read_conversations(path)] == [tuple(tools)] * 2


def test_roles_that_only_some_templates_know_are_left_to_the_template(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"messages": [m("user", "u"), m("observation", "1"), m("assistant", "a")]})
    assert [message.role for message in next(read_conversations(path)).messages] == ["user", "observation", "assistant"]


def test_a_conversation_with_its_reply_may_have_two_sides_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"messages": [m("user", "u"), m("assistant", "a")], **SIDES})
    assert [conversation.messages for conversation in read_conversations(path)] == [(U, A)]


def test_conversations_with_an_empty_reply_are_left_out_and_counted(tmp_path: Path) -> None:
    report = ReadReport()
    path = write(tmp_path / "x.jsonl", {"prompt": "u", "completion": ""}, {"prompt": "u", "completion": "a"})
    assert [conversation.key for conversation in read_conversations(path, report)] == [f"{path}:2"]
    assert report.dropped == {"conversations whose reply is empty": 1}


def test_a_conversation_of_user_turns_only_is_read_and_an_empty_one_is_not(tmp_path: Path) -> None:
    report = ReadReport()
    path = write(tmp_path / "x.jsonl", {"messages": [m("user", "u")]}, {"messages": []}, {"messages": [m("user", "")]})
    assert [conversation.messages for conversation in read_conversations(path, report)] == [(U,)]
    assert report.dropped == {"empty conversations": 2}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instructions": "x", "output": "y"}, "'instructions' looks like 'instruction'"),
        ({"messages": [{"role": "user"}]}, r'"messages"\[0\].content must be a text, not missing'),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "did you mean 'assistant'"),
        ({"messages": [{"role": "User", "content": "x"}]}, "did you mean 'user'"),
        ({"conversations": [{"from": "humen", "value": "x"}]}, "did you mean 'human'"),
        ({"conversations": [{"value": "x"}]}, r'"conversations"\[0\] must be'),
        ({"conversations": [{"from": "gpt", "value": "x", "loss": "no"}]}, r'"conversations"\[0\].loss must be true'),
        ({"conversations": [{"role": "user"}]}, r'"conversations"\[0\].content must be a text, not missing'),
        ({"messages": [m("user", "x"), m("asistant", "y")]}, r'"messages"\[1\] has .*\n.*did you mean \'assistant\''),
        ({"messages": [m("user", "x"), m("gpt", "y")]}, r"did you mean 'assistant'"),
        ({"messages": [m("user", "x"), m("tool_call", CALL_TEXT)]}, r"did you mean 'assistant'"),
        ({"messages": [{**m("assistant", ""), "function_call": "f"}]}, r'function_call must be \{"name"'),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{"}}]},
            r'"messages"\[0\].function_call.arguments is not valid JSON',
        ),
        ({"conversations": [{"from": "human", "value": "x"}], **SIDES}, "this is a preference"),
        ({"messages": [m("user", "x"), m("assistant", "y"), m("user", "z")], **SIDES}, "this is a preference"),
        ({"query": "x", "response": "y", "history": "z"}, '"history" must be a list'),
        ({"prompt": [m("user", "x")], "completion": "y", "history": [["a", "b"]]}, '"history" stands beside'),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "not valid JSON"),
        ({"conversations": [{"from": "function_call", "value": "[" * 100_000}]}, "value is not valid JSON"),
        ({"conversations": [{"from": "tool_call", "value": '{"name": "f", "arguments": {"x": NaN}}'}]}, "valid JSON"),
        ({"conversations": [{"from": "tool_call", "value": '{"name": "f", "arguments": "NaN"}'}]}, "not valid JSON"),
        ({"conversations": [{"from": "function_call", "value": "[]"}]}, "of no function"),
        ({"conversation": [{"human": "x"}]}, '"human" and "assistant"'),
        ({"instruction": 3, "output": "y"}, '"instruction" must be a text, not int'),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "pair"),
        ({"prompt": "x", "completion": "\ud800"}, "surrogate"),
        ({"prompt": "x", "completion": "y", "tools": "["}, '"tools" is not valid JSON'),
        ({"prompt": "x", "completion": "y", "tools": '["\\ud83d"]'}, '"tools" is not valid JSON'),
        (["x"], "must be a JSON object"),
    ],
)
def test_a_wrong_record_is_named_by_file_line_and_key(record: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "u", "completion": "a"}) + "\n\n" + json.dumps(record) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(read_conversations(path))
    assert str(caught.value).startswith(f"{path}:3: ")


def test_replies_that_kto_calls_unwanted_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "kto.jsonl",
        {"prompt": "u", "completion": "a", "label": True},
        {"prompt": "u", "completion": "b", "label": False},
        {"messages": [m("user", "u"), m("assistant", "b")], "label": False},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "b"}], "kto_tag": False},
        {"instruction": "u", "output": "a", "label": 0},
    )
    report = ReadReport()
    assert [list(each.messages) for each in read_conversations(path, report)] == [[U, A], [U, A]]
    assert report.dropped == {"replies that are not wanted (label or kto_tag is false)": 3}


def test_roles_of_a_template_s_own_are_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    roles = ("developer", "ipython", "user_info", "用户", "assistant")
    path.write_text(json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]}))
    (conversation,) = read_conversations(path)
    found = [message.role for message in conversation.messages]
    assert found == ["system", "ipython", "user_info", "user", "assistant"]


def test_broken_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(DataError, match=r"broken\.jsonl:2: this line is not valid JSON"):
        list(read_documents(broken))
    broken.write_text('[{"text": "x"}\n]')
    with pytest.raises(DataError, match=r"named \.json"):
        list(read_documents(broken))
    broken.write_bytes(b'{"text": "x"}\n' * 9_000 + b'{"text": "\xff"}')
    with pytest.raises(DataError, match=r"broken\.jsonl:9001: this file is not UTF-8: .* at byte 10 of the line"):
        list(read_documents(broken))
    with pytest.raises(DataError, match="no such file"):
        list(read_documents(tmp_path / "nothing"))
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(DataError, match="not read"):
        list(read_documents(tmp_path / "x.docx"))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.txt", "X.JSONL"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    suffix = ".gz" if pack is gzip.compress else ".zst"
    name += suffix.upper() if name.isupper() else suffix
    file = tmp_path / name
    whole = pack(b'{"text": "a hare"}\n' * 50)
    kind = whole[:10] if suffix == ".gz" else whole[:6]  # a block of a kind that does not exist follows
    for content in (b'{"text": "not packed"}\n', whole[:-9], whole[:5], kind + b"\xff" + whole[len(kind) + 1 :]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: this file cannot be unpacked.*\n.*fetch it again"):
            list(read_documents(file))
        with pytest.raises(DataError, match="cannot be unpacked"):
            list(read_documents(tmp_path))
    file.write_bytes(pack(b'{"text": "\xff"}'))
    with pytest.raises(DataError, match=rf"{name}:1: this file is not UTF-8"):
        list(read_documents(file))


def test_a_zstandard_file_is_read_to_its_end_through_all_frames(tmp_path: Path) -> None:
    texts = [f"{number} " + "兔子" * 40 for number in range(4000)]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts]
    unseekable = zstandard.ZstdCompressor().compressobj()  # as `zstd` writes from a pipe: no size in the head
    aside = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # a frame to skip
    parts = [zstandard.compress(b"".join(lines[:1])), aside, zstandard.compress(b"")]
    parts += [
        unseekable.compress(b"".join(lines[1:3000])) + unseekable.flush(),
        zstandard.compress(b"".join(lines[3000:])),
    ]
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(parts))
    assert [document.text for document in read_documents(tmp_path / "x.jsonl.zst")] == texts


def test_a_text_that_lost_its_last_lines_is_no_whole_one(tmp_path: Path) -> None:
    lines = b"".join(b"%d hares on the hill\n" % number for number in range(90_000))
    packed = zstandard.compress(lines)
    (tmp_path / "x.txt.zst").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"x\.txt\.zst: .* it ends before its end-of-frame mark"):
        list(read_documents(tmp_path / "x.txt.zst"))


def test_json_lines_under_the_name_of_json_end_at_line_feeds_only(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    texts = ["a\u2028b", "c\u0085d", "e"]
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    file.write_text("\r\n".join(lines), "utf-8", newline="")
    assert [document.text for document in read_documents(file)] == texts


def test_documents_are_text_files_and_records_with_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# 标题\r\nline", "utf-8", newline="")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.py").write_bytes(b"# \xe9\n")
    write(tmp_path / "d.jsonl", {"text": "one"}, {"content": "two"}, {"text": ""})
    report = ReadReport()
    texts = [document.text for document in read_documents(tmp_path, report)]
    assert texts == ["# 标题\r\nline", "one", "two"]
    assert report.dropped == {"empty texts": 2, "files that are not UTF-8": 1}
    write(tmp_path / "e.jsonl", {"messages": []})
    with pytest.raises(DataError, match="no text to train on"):
        list(read_documents(tmp_path / "e.jsonl"))


PREFERENCES: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": "u", "chosen": "a", "rejected": "b"}),
    ("prompt", {"question": "u", "chosen": "a", "rejected": "b"}),
    ("prompt", {"prompt": [m("user", "u")], "chosen": [m("assistant", "a")], "rejected": m("assistant", "b")}),
    (
        "prompt",
        {
            "prompt": "u",
            "chosen": [m("user", "u"), m("assistant", "a")],
            "rejected": [m("user", "u"), m("assistant", "b")],
        },
    ),
    (
        "implicit prompt",
        {"chosen": [m("user", "u"), m("assistant", "a")], "rejected": [m("user", "u"), m("assistant", "b")]},
    ),
    ("implicit prompt", {"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u\n\nAssistant: b"}),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "u"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ),
    ("alpaca", {"instruction": "u", "input": "", "chosen": "a", "rejected": "b"}),
    ("messages", {"messages": [m("user", "u"), m("assistant", "a")], "rejected_response": "b"}),
]


@pytest.mark.parametrize(("name", "record"), PREFERENCES)
def test_each_preference_format_is_recognised(name: str, record: dict[str, Any], tmp_path: Path) -> None:
    report = ReadReport()
    (preference,) = read_preferences(write(tmp_path / "p.jsonl", record), report)
    assert (preference.prompt, preference.chosen, preference.rejected) == ((U,), (A,), (Message("assistant", "b"),))
    assert report.formats == {name: 1}
    (under,) = read_preferences(write(tmp_path / "s.jsonl", record | {"system": "s"}))
    assert (under.prompt, under.chosen, under.rejected) == ((S, U), (A,), (Message("assistant", "b"),))


def test_useless_preferences_are_counted_and_wrong_ones_refused(tmp_path: Path) -> None:
    report = ReadReport()
    same = {"prompt": "u", "chosen": "a", "rejected": "a"}
    empty = {"prompt": "u", "chosen": "a", "rejected": ""}
    assert list(read_preferences(write(tmp_path / "p.jsonl", same, empty), report)) == []
    assert report.dropped.total() == 2
    for record, message in (
        ({"prompt": "u", "chosen": "a"}, "not those of a preference"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"chosen": [m("user", "u")], "rejected": [m("user", "v")]}, "same message"),
    ):
        with pytest.raises(DataError, match=message):
            list(read_preferences(write(tmp_path / "p.jsonl", record)))


def test_a_conversation_becomes_a_sample_as_serving_would_write_it(tokenizer: Tokenizer) -> None:
    template = builtin_template("hare")
    conversation = Conversation(messages=(U, A, U2, A2), key="x:1")
    sample = render_sample(tokenizer, template, conversation)
    encoded = template.encode(tokenizer, list(conversation.messages))
    assert (sample.ids, sample.mask, sample.key) == (encoded.ids, encoded.mask, "x:1")
    assert (
        tokenizer.decode([i for i, t in zip(sample.ids, sample.mask, strict=True) if t]) == "a<round_end>见<round_end>"
    )
    prompt = template.encode(tokenizer, [U, A, U2], add_generation_prompt=True).ids
    assert sample.ids[: len(prompt)] == prompt
    with pytest.raises(TemplateError, match="generation"):
        render_sample(tokenizer, ChatTemplate("{{ messages[0].content }}"), conversation)
    with pytest.raises(TemplateError, match=r"^x:1: "):
        render_sample(tokenizer, builtin_template("hare"), Conversation(messages=(U, CALL), key="x:1"))
