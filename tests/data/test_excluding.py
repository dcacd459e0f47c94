"""Data left out by name: found by the very key, counted, and never silently not found."""

import numpy as np
import pytest

from leveret.data.excluding import Exclusions
from leveret.data.files import ReadReport
from leveret.data.packing import PackedRows, Piece
from leveret.errors import DataError


class Numbered(PackedRows):
    """Rows that hold their own number."""

    def __init__(self, count, name="train-0"):
        super().__init__(4)
        self.count, self.name = count, name

    def __len__(self):
        return self.count

    def pieces(self, index, turn):
        return [Piece(ids=np.array([index, turn], np.int32), targets=np.array([turn, -100], np.int32))]

    def key(self, index):
        return f"{self.name}, row {index}"


def left(keys, items):
    """What is kept, and the report about it."""
    exclusions, report = Exclusions.of(keys), ReadReport()
    report.num_records = len(items)
    kept = list(exclusions.without(items, lambda item: item, report))
    return kept, report, exclusions


LINES = [f"corpus.jsonl:{number}" for number in range(1, 30)]


def test_what_is_named_is_left_out_and_counted():
    kept, report, exclusions = left(["corpus.jsonl:2", "corpus.jsonl:11"], LINES)
    assert kept == [line for line in LINES if line not in ("corpus.jsonl:2", "corpus.jsonl:11")]
    assert report.num_records == 27 and report.dropped["named in exclude_rows"] == 2
    assert any("2" in line and "named in exclude_rows" in line for line in report.lines())
    exclusions.refuse_unknown()


def test_a_key_is_the_whole_key():
    """`corpus.jsonl:1` is not the beginning of `corpus.jsonl:12`."""
    kept, _, _ = left(["corpus.jsonl:1"], LINES)
    assert kept == LINES[1:]


def test_nothing_is_looked_at_when_nothing_is_named():
    kept, report, exclusions = left([], LINES)
    assert kept == LINES and not report.dropped
    rows = Numbered(3)
    assert exclusions.without_rows(rows) is rows
    exclusions.refuse_unknown()


@pytest.mark.parametrize(
    ("wrong", "near"), [("corpus.jsonl:2 ", "corpus.jsonl:2"), ("corpsu.jsonl:11", "corpus.jsonl:11")]
)
def test_a_key_that_is_nowhere_is_refused_with_the_nearest(wrong, near):
    _, _, exclusions = left(["corpus.jsonl:3", wrong], LINES)
    with pytest.raises(DataError) as caught:
        exclusions.refuse_unknown()
    assert f"1 of 2 keys are not in the training data, first {wrong!r}" in str(caught.value)
    assert f"did you mean {near!r}?" in str(caught.value)


def test_a_key_that_is_like_nothing_gets_an_example():
    _, _, exclusions = left(["?"], LINES)
    with pytest.raises(DataError, match=r"such as corpus\.jsonl:12") as caught:
        exclusions.refuse_unknown()
    assert "did you mean" not in str(caught.value)


def test_keys_may_stand_in_a_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("# seen on Monday\ncorpus.jsonl:5\n\n  corpus.jsonl:6  \n")
    kept, _, _ = left(path, LINES)
    assert len(kept) == 27 and not {"corpus.jsonl:5", "corpus.jsonl:6"} & {*kept}
    path.write_text("corpus.jsonl:5\r\n", "utf-8-sig")
    assert len(left(path, LINES)[0]) == 28
    with pytest.raises(DataError, match=r"none\.txt: cannot be read as a list of keys"):
        left(tmp_path / "none.txt", LINES)


def test_rows_keep_their_names_and_order_when_some_are_left_out():
    exclusions = Exclusions(["train-0, row 1", "train-1, row 0"])
    first, second = exclusions.without_rows(Numbered(4)), exclusions.without_rows(Numbered(2, "train-1"))
    exclusions.refuse_unknown()
    assert [first.key(place) for place in range(len(first))] == ["train-0, row 0", "train-0, row 2", "train-0, row 3"]
    assert first.row(1, turn=7).input_ids.tolist() == [2, 7, 0, 0]
    assert [second.key(place) for place in range(len(second))] == ["train-1, row 1"]
    assert exclusions.rows == ["train-0, row 1", "train-1, row 0"]


def test_rows_are_the_same_object_when_all_keys_are_found_or_none_is_theirs():
    exclusions = Exclusions(["train-0, row 1"])
    other = Numbered(2, "train-1")
    assert exclusions.without_rows(other) is other
    exclusions.without_rows(Numbered(4))
    late = Numbered(3, "train-2")
    assert exclusions.without_rows(late) is late


def test_a_source_of_which_nothing_is_left_is_an_error():
    exclusions = Exclusions([f"train-0, row {index}" for index in range(3)])
    with pytest.raises(DataError, match="all 3 rows of train-0 are named in exclude_rows"):
        exclusions.without_rows(Numbered(3))
