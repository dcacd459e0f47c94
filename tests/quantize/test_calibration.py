"""Calibration text: rows of documents that do not see each other, and what is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leveret.errors import DataError
from leveret.quantize.calibration import read_calibration
from leveret.tokenizer.files import Tokenizer


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_documents_lie_behind_each_other_and_count_their_own_positions(directory: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    texts = [f"a hare runs {'over ' * number}" for number in range(4)]
    found = read_calibration(
        [written(tmp_path / "c.jsonl", texts)], tokenizer, row_tokens=16, most_tokens=1000, held_out_tokens=0
    )
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    wanted = [token for text in texts for token in [*start, *tokenizer.encode(text)]]
    assert [token for row in found.rows for token in row.ids[0].tolist()] == wanted
    assert found.held_out == () and found.documents == 4 and found.tokens == len(wanted)
    for row in found.rows:
        positions, documents = row.positions[0].tolist(), row.document_ids[0].tolist()
        assert row.ids.shape[1] <= 16 and positions[0] == 0
        for place in range(1, len(positions)):
            same = documents[place] == documents[place - 1]
            assert positions[place] == (positions[place - 1] + 1 if same else 0)
    numbers = {len(set(row.document_ids[0].tolist())) for row in found.rows}
    assert max(numbers) > 1, "short documents share a row"


def test_every_tenth_document_is_held_out_and_never_calibrated_on(directory: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    texts = [f"document {chr(97 + number)} runs over the field" for number in range(20)]
    found = read_calibration(
        [written(tmp_path / "c.jsonl", texts)], tokenizer, row_tokens=64, most_tokens=5000, held_out_tokens=5000
    )
    held = [tokenizer.decode(window.ids) for window in found.held_out]
    assert found.documents == 18 and len(held) == 2
    assert "document j" in held[0] and "document t" in held[1]
    rows = tokenizer.decode([token for row in found.rows for token in row.ids[0].tolist()])
    assert "document j" not in rows and "document a" in rows and "document s" in rows


def test_of_a_single_text_the_end_is_held_out(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("a hare runs over the field. " * 100)
    tokenizer = Tokenizer.load(directory)
    found = read_calibration([path], tokenizer, row_tokens=64, most_tokens=300, held_out_tokens=1000)
    held = sum(len(window.ids) for window in found.held_out)
    assert found.documents == 1 and 250 <= found.tokens <= 310 and 25 <= held <= 40


def test_each_path_has_its_share_of_the_tokens(directory: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    paths = []
    for name, number in (("long", 200), ("short", 2), ("other", 200)):
        paths.append(written(tmp_path / f"{name}.jsonl", [f"{name} hare over the field"] * number))
    found = read_calibration(paths, tokenizer, row_tokens=64, most_tokens=400, held_out_tokens=0)
    rows = [tokenizer.decode(row.ids[0].tolist()) for row in found.rows]
    counts = {path.stem: sum(text.count(f"{path.stem} ") for text in rows) for path in paths}
    assert found.tokens >= 390 and counts["short"] == 2
    assert counts["long"] >= 5 and abs(counts["long"] - counts["other"]) <= 2


def test_no_text_is_an_error_that_names_the_file(directory: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", [" "])
    with pytest.raises(DataError, match="no text to calibrate on"):
        read_calibration([path], Tokenizer.load(directory), row_tokens=8, most_tokens=100, held_out_tokens=10)
