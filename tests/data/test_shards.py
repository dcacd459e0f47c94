"""Token shards: what goes in comes out, once, and damage does not pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from leveret.data import shards
from leveret.data.examples import Document
from leveret.data.shards import TokenShards, build_shards
from leveret.errors import DataError
from leveret.tokenizer.files import Tokenizer


def test_documents_come_back_as_they_were_tokenized(
    documents: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for characters in (1, 40, 10_000):  # one document a shard, several, all in one
        shards = build_shards(documents, tokenizer, tmp_path / str(characters), shard_characters=characters)
        assert shards.num_documents == len(documents)
        for index, document in enumerate(documents):
            assert shards.document(index).tolist() == tokenizer.encode(document.text, add_eos=True)
        whole = [token for document in documents for token in tokenizer.encode(document.text, add_eos=True)]
        assert shards.tokens(0, shards.num_tokens).tolist() == whole
        assert shards.tokens(3, 17).tolist() == whole[3:17]
        assert shards.num_bytes == sum(len(document.text.encode()) for document in documents)
        assert shards.tokens(0, 5).dtype == np.uint16
        assert TokenShards.open(shards.directory, verify=True).fingerprint == shards.fingerprint


def test_text_is_tokenized_a_little_at_a_time(
    documents: list[Document], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_shards(documents, tokenizer, tmp_path / "whole")
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 10)
    parts = build_shards(documents, tokenizer, tmp_path / "parts")
    assert parts.fingerprint == whole.fingerprint
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_bos_is_added_when_asked_for(documents: list[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = build_shards(documents, tokenizer, tmp_path, add_bos=True)
    assert shards.document(0).tolist() == tokenizer.encode(documents[0].text, add_bos=True, add_eos=True)


def test_nothing_is_tokenized_again_when_nothing_changed(
    documents: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first = build_shards(documents, tokenizer, tmp_path, shard_characters=8)
    count = first.report.num_shards
    assert count > 2 and first.report.num_reused == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    again = build_shards(iter(documents), tokenizer, tmp_path, shard_characters=8)
    assert again.report.num_reused == count
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")} == times
    longer = [*documents, Document(text="new text at the end", source="x")]
    appended = build_shards(longer, tokenizer, tmp_path, shard_characters=8)
    assert appended.report.num_reused >= count - 1
    assert appended.fingerprint != first.fingerprint


def test_a_changed_tokenizer_or_text_makes_new_shards_and_removes_the_old(
    documents: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    build_shards(documents, tokenizer, tmp_path)
    other = Tokenizer(tokenizer.to_json(), eos_token="<round_end>")
    changed = build_shards(documents, other, tmp_path)
    assert changed.report.num_reused == 0
    assert len(list(tmp_path.glob("*.tokens.npy"))) == changed.report.num_shards


def test_a_killed_build_goes_on_where_it_was(documents: list[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die(num_documents: int, _: int) -> None:
        if num_documents >= 4:
            raise Killed

    with pytest.raises(Killed):
        build_shards(documents, tokenizer, tmp_path, shard_characters=1, on_progress=die)
    with pytest.raises(DataError, match="no finished token shards"):
        TokenShards.open(tmp_path)
    resumed = build_shards(documents, tokenizer, tmp_path, shard_characters=1)
    assert resumed.report.num_reused == 3  # the empty second document shares a shard
    fresh = build_shards(documents, tokenizer, tmp_path / "fresh", shard_characters=1)
    assert resumed.fingerprint == fresh.fingerprint


@pytest.mark.parametrize("damage", ["cut", "flip", "record", "missing"])
def test_a_damaged_shard_is_noticed_and_rebuilt(
    damage: str, documents: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shards = build_shards(documents, tokenizer, tmp_path, shard_characters=20)
    whole = shards.tokens(0, shards.num_tokens).tolist()
    path = sorted(tmp_path.glob("*.tokens.npy"))[0]
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-2])
    elif damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "record":
        path.with_name(path.name.replace(".tokens.npy", ".json")).write_text("{")
    else:
        path.unlink()
    with pytest.raises(DataError, match="damaged"):
        TokenShards.open(tmp_path, verify=True)
    if damage != "flip":
        with pytest.raises(DataError, match="damaged"):
            TokenShards.open(tmp_path)
    repaired = build_shards(documents, tokenizer, tmp_path, shard_characters=20)
    assert repaired.report.num_repaired == 1
    assert repaired.tokens(0, repaired.num_tokens).tolist() == whole


@pytest.mark.parametrize("field", ["num_tokens", "num_documents", "num_bytes"])
def test_a_record_that_counts_wrong_is_rebuilt(
    field: str, documents: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = build_shards(documents, tokenizer, tmp_path)
    (path,) = (file for file in tmp_path.glob("*.json") if file.name != "index.json")
    content = path.read_text()
    record = json.loads(content)
    path.write_text(json.dumps({**record, field: record[field] + 1}))
    repaired = build_shards(documents, tokenizer, tmp_path)
    assert repaired.report.num_repaired == 1 and path.read_text() == content
    assert repaired.num_bytes == whole.num_bytes


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path: Path) -> None:
    from leveret.tokenizer.train import train_byte_bpe

    base = train_byte_bpe(["ab"] * 3, vocab_size=300, special_tokens=["<eos>"], eos_token="<eos>")
    big = Tokenizer(base.to_json(), eos_token="<eos>")
    big.add_special_tokens([f"<extra_{number}>" for number in range(66_000)])
    assert build_shards([Document(text="ab", source="x")], big, tmp_path).tokens(0, 1).dtype == np.uint32


@pytest.mark.parametrize("documents", [[], iter(())])
def test_no_documents_is_an_error(documents: Sequence[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents"):
        build_shards(documents, tokenizer, tmp_path)
