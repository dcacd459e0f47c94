"""The scheduler alone, without a model: who is fed what, that nobody starves, and that blocks are given back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.engine.blocks import BlockPool
from leveret.engine.request import Request, SamplingParams
from leveret.engine.row import Row
from leveret.engine.scheduler import MOST_PASSES, Scheduler

SIZE = 4


def scheduler_of(num_blocks: int, *, max_rows: int = 8, chunk: int = 16, reuse: bool = True) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks), block_tokens=SIZE, max_rows=max_rows, prefill_chunk_tokens=chunk, reuse=reuse
    )


def row_of(arrival: int, prompt: int | tuple[int, ...], max_tokens: int = 4) -> Row:
    """A number is the length of a prompt that begins like no other."""
    ids = tuple(1000 * arrival + place for place in range(prompt)) if isinstance(prompt, int) else prompt
    return Row(Request(prompt_ids=ids, params=SamplingParams(max_tokens=max_tokens)), arrival=arrival)


def step(scheduler: Scheduler) -> dict[int, int]:
    """One step with a model that always says 7; the tokens fed to each row, by arrival."""
    turns = scheduler.plan(lambda _: {})
    for turn in turns:
        row, answers = turn.row, turn.count == turn.row.num_pending
        needed = -(-(row.num_cached + turn.count) // SIZE)
        assert len(row.table) >= needed and len(set(row.table)) == len(row.table)
        if answers:
            row.take(7)
        scheduler.fed(row, turn.count)
        if row.finish_reason is not None:
            scheduler.remove(row)
    return {turn.row.arrival: turn.count for turn in turns}


def steps_until_begun(scheduler: Scheduler, row: Row) -> int:
    count = 0
    while not row.num_generated:
        step(scheduler)
        count += 1
    return count


def test_a_long_prompt_takes_at_most_twice_its_steps_however_many_short_ones_come() -> None:
    alone = scheduler_of(1000)
    alone.add(long := row_of(1, 320))
    needed = steps_until_begun(alone, long)
    crowded = scheduler_of(1000)
    crowded.add(long := row_of(1, 320))
    arrival = count = 0
    while not long.num_generated:
        arrival += 1
        crowded.add(row_of(1 + arrival, 16, max_tokens=1))
        step(crowded)
        count += 1
    assert needed == 20 and count <= 2 * needed


def test_a_short_prompt_does_not_wait_behind_long_ones() -> None:
    scheduler = scheduler_of(1000)
    for arrival in (1, 2, 3):
        scheduler.add(row_of(arrival, 400))
    step(scheduler)
    scheduler.add(short := row_of(4, 6))
    assert steps_until_begun(scheduler, short) == 1


def test_rows_that_are_answered_get_a_token_every_step_while_a_prompt_is_read() -> None:
    scheduler = scheduler_of(1000)
    scheduler.add(first := row_of(1, 3, max_tokens=30))
    step(scheduler)
    scheduler.add(row_of(2, 200))
    for _ in range(10):
        before = first.num_generated
        fed = step(scheduler)
        assert first.num_generated == before + 1 and fed[2] == 16


def test_a_prefix_that_all_share_is_read_once_though_all_come_together() -> None:
    scheduler = scheduler_of(1000, max_rows=32)
    prefix = tuple(range(100))
    rows = [row_of(arrival, (*prefix, 500 + arrival, 600 + arrival)) for arrival in range(32)]
    for row in rows:
        scheduler.add(row)
    fed = 0
    while not all(row.num_generated for row in rows):
        fed += sum(step(scheduler).values())
    assert scheduler.num_reused == 31 * 100
    assert fed < 102 + 31 * 2 + 32 * 4
    held = {block for row in rows for block in row.table}
    assert len(held) <= 25 + 32 * 2


def test_without_reuse_every_row_reads_all_of_its_prompt() -> None:
    scheduler = scheduler_of(1000, reuse=False)
    for arrival in range(4):
        scheduler.add(row_of(arrival, tuple(range(40))))
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    assert scheduler.num_reused == 0 and scheduler.pool.num_kept == 0


def test_the_youngest_gives_way_and_ends_all_the_same() -> None:
    scheduler = scheduler_of(9)
    rows = [row_of(arrival, 8, max_tokens=20) for arrival in (1, 2, 3)]
    for row in rows:
        scheduler.add(row)
    ended = []
    for _ in range(300):
        step(scheduler)
        ended += [row for row in rows if row.finish_reason and row not in ended]
    assert ended == rows and scheduler.num_preemptions >= 1
    assert scheduler.pool.num_held == 0


def test_a_row_that_lacks_room_is_passed_only_so_often() -> None:
    scheduler = scheduler_of(20, max_rows=4)
    scheduler.add(row_of(0, 40, max_tokens=30))
    step(scheduler)
    scheduler.add(large := row_of(1, 60, max_tokens=2))
    begun = 0
    for arrival in range(2, 200):
        scheduler.add(small := row_of(arrival, 3, max_tokens=1))
        step(scheduler)
        begun += small.num_generated
        if large.num_cached:
            break
    assert large.num_cached and 0 < begun <= MOST_PASSES + 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 24), st.integers(1, 12), st.integers(0, 6), st.booleans()), min_size=1, max_size=12
    ),
    st.integers(9, 20),
    st.integers(1, 24),
)
def test_every_row_ends_and_every_block_comes_back(
    jobs: list[tuple[int, int, int, bool]], num_blocks: int, chunk: int
) -> None:
    """Prompts that share beginnings, arrivals at any time, some cancelled, with hardly any room."""
    scheduler = scheduler_of(num_blocks, max_rows=4, chunk=chunk)
    rows = [row_of(at, tuple(range(prompt)), most) for at, (prompt, most, _, _) in enumerate(jobs)]
    for count in range(2000):
        for row, (_, _, when, cancelled) in zip(rows, jobs, strict=True):
            if when == count:
                scheduler.add(row)
            if cancelled and count == when + 2 and row.finish_reason is None:
                row.finish_reason = "cancelled"
                scheduler.remove(row)
        step(scheduler)
        if all(row.finish_reason for row in rows):
            break
    assert all(row.finish_reason for row in rows)
    assert scheduler.pool.num_held == 0 and scheduler.pool.num_available == num_blocks
