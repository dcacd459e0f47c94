"""`leveret prepare`: the same bytes every time, nothing on both sides, nothing done twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from leveret.config import parse_config
from leveret.console import Console
from leveret.data.examples import Document
from leveret.errors import ConfigError, DataError, ToolError
from leveret.paths import hash_tree
from leveret.prepare import documents as prepare_documents
from leveret.prepare.config import PrepareConfig
from leveret.prepare.documents import divide
from leveret.prepare.run import REPORT, run
from leveret.segment.words import normalize
from leveret.tools.requests import read_requests
from leveret.tools.schema import ToolSet
from leveret.vocabulary.config import TokenizerConfig
from leveret.vocabulary.run import run as train_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "phone"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """200 documents of some ten words, one of them twice."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [
        {"text": f"the hare number{number} ran over hill {number * 7} and met a tortoise"} for number in range(200)
    ]
    content = "".join(json.dumps(line) + "\n" for line in [*lines, lines[5]])
    (folder / "hares.jsonl").write_text(content)
    return folder


def config(texts: Path, **changes: Any) -> PrepareConfig:
    values = {"documents": [texts], "output": texts.parent / "out", "validation_share": 0.1, **changes}
    return parse_config(PrepareConfig, values, source="test")


def requests(**changes: Any) -> dict[str, Any]:
    phrases = [RECIPE / "phrases.en.yaml", RECIPE / "phrases.zh.yaml"]
    return {"tools": RECIPE / "tools.json", "phrases": phrases, "train": 600, "held_out": 40, **changes}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_second_folder_gets_the_same_bytes_and_another_seed_others(texts: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(config(texts, output=texts.parent / name, requests=requests(train=200), seed=seed), Console(quiet=True))
    hashes = [hash_tree(texts.parent / name) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    assert {file.name for file in (texts.parent / "a").iterdir()} == {
        *("text.train.jsonl", "text.valid.jsonl", "requests.train.jsonl", "requests.text.jsonl"),
        *("values.text.jsonl", "report.json"),
        *(f"held_out.{kind}.jsonl" for kind in ("single", "combined", "irrelevant")),
    }


def test_documents_without_any_text_are_refused_by_name(texts: Path) -> None:
    (texts / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"no text in .*empty\.txt"):
        run(config(texts, documents=[texts / "empty.txt"]), Console(quiet=True))


def test_train_and_validation_share_no_text_and_copies_are_dropped(texts: Path) -> None:
    summary = run(config(texts), Console(quiet=True)).summary
    train, valid = (lines(texts.parent / "out" / f"text.{name}.jsonl") for name in ("train", "valid"))
    assert len(train) + len(valid) == 200
    assert 5 < len(valid) < 40
    assert not {line["text"] for line in train} & {line["text"] for line in valid}
    assert summary == {
        "train_documents": len(train),
        "train_bytes": sum(len(line["text"].encode()) for line in train),
        "valid_documents": len(valid),
        "valid_bytes": sum(len(line["text"].encode()) for line in valid),
    }


def test_copies_that_differ_in_case_or_spacing_are_on_one_side() -> None:
    texts = [f"Text  number {number // 2}" if number % 2 else f"text number {number // 2}" for number in range(400)]
    train, valid = divide([Document(text=text, source="x") for text in texts], 0.1)
    keys = [{" ".join(normalize(one.text).split()) for one in side} for side in (train, valid)]
    assert all(keys) and not keys[0] & keys[1]


def test_a_few_documents_still_give_one_to_validate_with() -> None:
    train, valid = divide([Document(text=text, source=text) for text in "abc"], 1e-6)
    assert (len(train), len(valid)) == (2, 1)
    with pytest.raises(DataError, match="too few to hold some out"):
        divide([Document(text="a", source="a")], 0.1)
    assert divide([Document(text="a", source="a")], 0.0) == ([Document(text="a", source="a")], [])


def test_max_bytes_keeps_a_seeded_sample(texts: Path) -> None:
    summary = run(config(texts, max_bytes=2000), Console(quiet=True)).summary
    assert 1900 < summary["train_bytes"] + summary["valid_bytes"] <= 2000
    first = lines(texts.parent / "out" / "text.train.jsonl")
    run(config(texts, max_bytes=2000, seed=1), Console(quiet=True))
    assert lines(texts.parent / "out" / "text.train.jsonl") != first
    with pytest.raises(DataError, match="one of 200 documents fits into max_bytes"):
        run(config(texts, max_bytes=10), Console(quiet=True))


def test_where_hardly_a_document_fits_the_beginnings_of_some_are_kept(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = texts.parent / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.txt").write_text(f"兔 {number} " + "兔子跑得很快。" * 500)
    (books / "short.txt").write_text("the hare runs")
    summary = run(config(books, max_bytes=2000), Console()).summary
    assert summary["train_documents"] >= 1 <= summary["valid_documents"]
    assert summary["train_documents"] + summary["valid_documents"] == 4
    assert 1300 < summary["train_bytes"] + summary["valid_bytes"] <= 2000
    assert "kept the first 500 bytes of 4" in " ".join("".join(capsys.readouterr()).split())


def test_held_out_requests_are_new_and_every_file_fits_the_tools(texts: Path) -> None:
    summary = run(config(texts, requests=requests()), Console(quiet=True)).summary
    out, tools = texts.parent / "out", ToolSet.load(RECIPE / "tools.json")
    train = read_requests(out / "requests.train.jsonl", tools)
    assert len(train) == summary["train_requests"] == 600
    assert 0.18 < sum(len(request.calls) > 1 for request in train) / 600 < 0.32
    assert 0.07 < sum(not request.calls for request in train) / 600 < 0.18
    assert 200 < sum(any("\u4e00" <= c <= "\u9fff" for c in request.query) for request in train) < 330
    seen = {request.query.lower().strip(".!?~。！？ ") for request in train}
    for kind, count in (("single", 80), ("combined", 26), ("irrelevant", 20)):
        held_out = read_requests(out / f"held_out.{kind}.jsonl", tools)
        assert len(held_out) == summary[f"held_out_{kind}"] == count
        queries = {request.query.lower().strip(".!?~。！？ ") for request in held_out}
        assert len(queries) == count and not queries & seen
        seen |= queries


def test_requests_as_text_say_each_request_twice(texts: Path) -> None:
    run(config(texts, requests=requests(train=50)), Console(quiet=True))
    out = texts.parent / "out"
    queries = [request.query for request in read_requests(out / "requests.train.jsonl")]
    assert [line["text"] for line in lines(out / "requests.text.jsonl")] == [f"{query}\n{query}" for query in queries]
    run(config(texts, requests=requests(train=50, as_text=20)), Console(quiet=True))
    assert [line["text"] for line in lines(out / "requests.text.jsonl")] == [f"{each}\n{each}" for each in queries[:20]]


def test_values_are_said_beside_what_they_mean(texts: Path) -> None:
    run(config(texts, requests=requests(train=400)), Console(quiet=True))
    documents = [line["text"].split("\n") for line in lines(texts.parent / "out" / "values.text.jsonl")]
    assert len(documents) == 20 and {len(document) for document in documents} == {10}
    said = dict(line.rsplit(" = ", 1) for document in documents for line in document)
    times = {value for value in said.values() if re.fullmatch(r"\d\d:\d\d", value)}
    assert len(times) > 20 and all(
        value.isdigit() or "-" in value or value in ("today", "tomorrow") for value in set(said.values()) - times
    )


def test_requests_borrow_no_words_from_validation_text(texts: Path) -> None:
    names = ["name" + "".join("abcdefghij"[int(digit)] for digit in f"{number:03d}") for number in range(60)]
    stories = [{"text": f"{name} went far and " * 6} for name in names]
    (texts / "hares.jsonl").write_text("".join(json.dumps(story) + "\n" for story in stories))
    run(config(texts, requests=requests(train=4000)), Console(quiet=True))
    out = texts.parent / "out"
    content = (out / "requests.train.jsonl").read_text("utf-8").lower()
    content += (out / "held_out.single.jsonl").read_text("utf-8").lower()
    train, valid = ({line["text"].split()[0] for line in lines(out / f"text.{n}.jsonl")} for n in ("train", "valid"))
    assert len(train) + len(valid) == 60 and valid
    assert sum(name in content for name in train) > len(train) / 4
    assert not [name for name in valid if name in content]


def test_running_again_does_nothing_until_something_changes(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(config(texts, requests=requests(train=100)), Console(quiet=True))
    out = texts.parent / "out"
    times = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert run(config(texts, requests=requests(train=100)), Console(quiet=True)) == first
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == times

    train = out / "text.train.jsonl"
    content = train.read_bytes()
    train.write_bytes(content[: len(content) // 2])
    run(config(texts, requests=requests(train=100)), Console(quiet=True))
    assert train.read_bytes() == content

    (texts / "more.txt").write_text("one more document about a leveret")
    more = run(config(texts), Console(quiet=True)).summary
    assert more["train_documents"] + more["valid_documents"] == 201
    assert not list(out.glob("*requests*")) and not list(out.glob("held_out*"))  # what the new config does not make


def test_a_run_killed_before_its_end_starts_over(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(texts), Console(quiet=True))
    expected = hash_tree(texts.parent / "out")
    write = prepare_documents.atomic_write

    def killed(path: Path, content: str) -> None:
        if path.name == "text.valid.jsonl":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(prepare_documents, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config(texts, output=texts.parent / "cut"), Console(quiet=True))
    monkeypatch.undo()
    run(config(texts, output=texts.parent / "cut"), Console(quiet=True))
    assert hash_tree(texts.parent / "cut") == expected


def test_a_kind_of_which_a_book_has_nothing_can_be_switched_off(texts: Path) -> None:
    book = texts.parent / "book.yaml"
    book.write_text("language: en\ntools:\n  take_photo: ['shoot => camera=rear', 'me => camera=front']\n")
    with pytest.raises(ToolError, match=r"no combined requests.*\n.*requests\.combined_share=0"):
        run(config(texts, requests=requests(phrases=[book])), Console(quiet=True))
    with pytest.raises(ToolError, match=r"no irrelevant requests.*\n.*requests\.irrelevant_share=0"):
        run(config(texts, requests=requests(phrases=[book], combined_share=0)), Console(quiet=True))


def test_other_files_in_the_output_folder_are_left_alone(texts: Path) -> None:
    output = texts.parent / "out"
    output.mkdir()
    (output / "mine.jsonl").write_text('{"text": "mine"}\n')
    for share in (0.1, 0.2):
        run(config(texts, validation_share=share, requests=requests(train=20, held_out=4)), Console(quiet=True))
    assert (output / "mine.jsonl").read_text() == '{"text": "mine"}\n'
    written = {path.name for path in output.glob("*.jsonl")} - {"mine.jsonl"}
    assert written == set(json.loads((output / REPORT).read_text())["files"])
    run(config(texts), Console(quiet=True))
    assert {path.name for path in output.glob("*.jsonl")} == {"mine.jsonl", "text.train.jsonl", "text.valid.jsonl"}


def test_a_tokenizer_may_lie_in_the_same_folder(texts: Path) -> None:
    first = config(texts, validation_share=0.5)
    run(first, Console(quiet=True))
    values = {"documents": [first.output / "text.train.jsonl"], "output": first.output, "vocab_size": 300}
    second = parse_config(TokenizerConfig, values, source="test")
    train_tokenizer(second, Console(quiet=True))
    times = {path: path.stat().st_mtime_ns for path in first.output.iterdir()}
    run(first, Console(quiet=True))
    train_tokenizer(second, Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in first.output.iterdir()} == times


def test_what_a_killed_run_wrote_does_not_stay_beside_the_files_of_another(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = texts.parent / "out"
    out.mkdir()
    (out / "held_out.single.jsonl").write_text("mine\n")
    with monkeypatch.context() as killed:
        killed.setattr("leveret.prepare.run._write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config(texts), Console(quiet=True))
    assert (out / "text.valid.jsonl").is_file()
    run(config(texts, validation_share=0), Console(quiet=True))
    assert sorted(path.name for path in out.iterdir()) == ["held_out.single.jsonl", REPORT, "text.train.jsonl"]


def test_an_output_that_would_be_read_as_a_document_is_refused(texts: Path) -> None:
    for documents, output in (([texts], texts), ([texts.parent], texts.parent / "out")):
        with pytest.raises(ConfigError, match="the next run would read"):
            run(config(texts, documents=documents, output=output), Console(quiet=True))
    run(config(texts), Console(quiet=True))
    with pytest.raises(ConfigError, match="would be written over"):
        run(config(texts, documents=[texts.parent / "out" / "text.train.jsonl"]), Console(quiet=True))


def test_a_tool_without_phrases_is_warned_about(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = texts.parent / "book.yaml"
    book.write_text("language: en\ntools:\n  take_photo: ['shoot => camera=rear', 'me => camera=front']\n")
    shares = {"combined_share": 0.0, "irrelevant_share": 0.0}
    summary = run(config(texts, requests=requests(phrases=[book], train=10, held_out=9, **shares)), Console()).summary
    assert summary["held_out_single"] == 1  # one wording is held out: said once more it would not be new
    said = " ".join("".join(capsys.readouterr()).split())
    assert "has no requests for make_phone_call" in said
    assert "only 1 of 9 held-out single requests can be made" in said
    assert "only 0 of 3 held-out combined requests can be made" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"documents": []}, "there is nothing to prepare"),
        ({"requests": requests(combined_share=0.8, irrelevant_share=0.3)}, "together are above 1"),
        ({"requests": requests(phrases=[])}, "phrases"),
        ({"max_byte": 5}, "max_bytes"),
    ],
)
def test_wrong_configs_say_what_is_wrong(texts: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(texts, **values)
    assert said in str(caught.value)


def test_a_wording_that_asks_for_two_tools_is_warned_of(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = yaml.safe_load((RECIPE / "phrases.en.yaml").read_text("utf-8"))
    book["tools"]["play_music"].append("start {name}")
    file = texts.parent / "phrases.yaml"
    file.write_text(yaml.safe_dump(book, allow_unicode=True))
    run(config(texts, requests=requests(phrases=[file], train=50, held_out=4)), Console())
    said = " ".join("".join(capsys.readouterr()).split())
    assert (
        "which a new value does not tell apart: 1, such as" in said
        and "'start {}' asks for open_app and play_music" in said
    )
