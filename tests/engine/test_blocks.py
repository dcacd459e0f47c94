"""The pool of blocks: nothing is lost or given out twice, and counts are right, whatever is done in what order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.engine.blocks import RUBBISH, BlockPool, chained


def name(number: int) -> bytes:
    return chained(b"", [number])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.data())
def test_no_block_is_lost_or_given_twice_whatever_is_done(size: int, data: st.DataObject) -> None:
    pool = BlockPool(size)
    tables: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        act = data.draw(st.sampled_from(["allocate", "share", "publish", "release", "forget"]))
        if act == "allocate":
            count, before = data.draw(st.integers(0, size)), pool.num_available
            blocks = pool.allocate(count)
            assert (blocks is None) == (count > before)
            if blocks is not None:
                assert all(pool.holders(block) == 1 for block in blocks) and RUBBISH not in blocks
                assert not set(blocks) & {block for table in tables for block in table}
                tables.append(blocks)
        elif act == "share":
            found = pool.find(name(data.draw(st.integers(0, 3))))
            if found is not None:
                pool.share(found)
                tables.append([found])
        elif act == "publish" and any(tables):
            block = data.draw(st.sampled_from([block for table in tables for block in table]))
            pool.publish(block, name(data.draw(st.integers(0, 3))))
        elif act == "release" and tables:
            pool.release(tables.pop(data.draw(st.integers(0, len(tables) - 1))))
        elif act == "forget":
            pool.forget_all()
        held = Counter(block for table in tables for block in table)
        assert all(pool.holders(block) == held[block] for block in range(1, size + 1))
        assert pool.num_held == len(held)
        assert pool.num_available == size - len(held)
    for table in tables:
        pool.release(table)
    everything = pool.allocate(size)
    assert everything is not None and sorted(everything) == list(range(1, size + 1))


def test_a_kept_block_is_found_until_its_room_is_needed_and_the_oldest_goes_first() -> None:
    pool = BlockPool(3)
    for number in range(3):
        [block] = pool.allocate(1) or []
        pool.publish(block, name(number))
        pool.release([block])
    pool.share(found := pool.find(name(0)) or 0)
    pool.release([found])  # used just now, so the next one is the oldest
    assert pool.num_kept == 3 and pool.allocate(1) is not None
    assert [pool.find(name(number)) is None for number in range(3)] == [False, True, False]


def test_the_end_of_a_table_is_given_up_before_its_beginning() -> None:
    pool = BlockPool(2)
    table = pool.allocate(2) or []
    for number, block in enumerate(table):
        pool.publish(block, name(number))
    pool.release(table)
    pool.allocate(1)
    assert pool.find(name(0)) is not None and pool.find(name(1)) is None


def test_the_first_block_of_a_name_keeps_it() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2) or []
    pool.publish(first, name(1))
    pool.publish(second, name(1))
    assert pool.find(name(1)) == first
    pool.release([second])
    assert pool.num_kept == 0 and pool.num_available == 1


def test_releasing_twice_is_our_own_mistake() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1) or []
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)


def test_names_stand_for_everything_before_them() -> None:
    assert chained(chained(b"", [1, 2]), [3]) != chained(chained(b"", [2, 1]), [3])
    assert chained(b"", [1, 2]) == chained(b"", (1, 2)) != chained(b"a different model", [1, 2])
