"""The scheduler: who is fed how many tokens in the next step, and whose keys and values have to go when room is short.

    submitted -> waiting -> running: read in chunks -> one token a step -> finished
                    ^          |
                    +----------+  preempted: its blocks are taken, and it is read again later

Every step feeds all rows that are being answered, and a limited number of tokens of prompts. Of that number the oldest
prompt has at least half; the others come by what they still need, the shortest first. So a long prompt ends in at most
twice the steps it would take alone, whatever comes after it, and a short one does not wait behind it.

* Reuse: before a row reads a block of its prompt it looks for a block of that name. If another row is about to read the
  same block in this step, it waits for that row, so a prefix that many share is read once even if all come together.
* Room: a row begins when the blocks for its prompt are there. Rows that come later may begin before it if they fit, but
  only a few dozen times, so that what is freed is not always taken by small requests.
* Preemption: an older row takes the blocks of the youngest. The oldest row can thus always go on, and every row becomes
  the oldest at last. What was read stays findable until its blocks are used, so often little is read twice.

Numbers only; no tensor is touched here.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from leveret.engine.blocks import BlockPool
from leveret.engine.row import Row

MOST_PASSES = 32
"""How many later rows may begin while one waits for room."""

Guess = Callable[[list[Row]], dict[Row, list[int]]]
"""Rows that take one token next -> ids that are likely to follow it, for any of them."""


@dataclass(frozen=True)
class Turn:
    """What one row does in a step: it is fed `count` pending ids, then `draft`."""

    row: Row
    count: int
    draft: tuple[int, ...] = ()


class Scheduler:
    """The queue of rows that wait, and the rows that run."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_tokens: int,
        max_rows: int,
        prefill_chunk_tokens: int,
        reuse: bool,
        reuse_answers: bool = True,
    ) -> None:
        """`reuse`: False gives every row blocks of its own; `reuse_answers`: False shares blocks of prompts only."""
        self.pool = pool
        self.waiting: list[Row] = []
        self.running: list[Row] = []
        self.num_preemptions = 0
        self.num_reused = 0
        self.fresh: list[int] = []
        """Blocks given out by the last plan; what they contain is rubbish."""
        self._size = block_tokens
        self._max_rows = max_rows
        self._budget = max(prefill_chunk_tokens, block_tokens)
        self._reuse = reuse
        self._reuse_answers = reuse_answers

    def add(self, row: Row) -> None:
        """Let a row wait for its place; the order is that of arrival."""
        bisect.insort(self.waiting, row, key=lambda each: each.arrival)

    def remove(self, row: Row) -> None:
        """A row has ended: its blocks are free for others."""
        if row in self.running:
            self.running.remove(row)
        elif row in self.waiting:
            self.waiting.remove(row)
        self._take_blocks(row)

    def plan(self, guess: Guess) -> list[Turn]:
        """The turns of the next step, the oldest row first; empty when nothing waits or runs."""
        self.fresh = []
        self._admit()
        for row in self.running:
            self._adopt(row)
        shares = self._shares()
        answering = [row for row in self.running if row.num_pending == 1]
        guesses = guess(answering)
        turns = []
        for row in list(self.running):  # in order of arrival: who is preempted has not had its turn
            count = shares.get(row, 0)
            if not count or row not in self.running:
                continue
            draft = tuple(guesses.get(row, ()))
            if draft and not self._has_room(row, count + len(draft)):
                draft = ()
            if self._make_room(row, count + len(draft)):
                turns.append(Turn(row, count, draft))
        return turns

    def fed(self, row: Row, count: int) -> None:
        """A row has `count` more tokens in the cache, all of them ids it keeps; its full blocks can now be found."""
        first, row.num_cached = row.num_cached // self._size, row.num_cached + count
        if self._reuse:
            end = row.num_cached if self._reuse_answers else min(row.num_cached, len(row.request.prompt_ids))
            for block in range(first, end // self._size):
                self.pool.publish(row.table[block], row.name(block, self._size))

    def _admit(self) -> None:
        """Begin waiting rows while there are places and room for their prompts."""
        at = 0
        promised = sum(self._num_missing(row) for row in self.running)
        while at < len(self.waiting) and len(self.running) < self._max_rows:
            row = self.waiting[at]
            needed = self._num_missing(row) - self._num_shared(row)
            if self.running and needed > self.pool.num_available - promised:
                if row.times_passed >= MOST_PASSES:
                    return
                at += 1
                continue
            for earlier in self.waiting[:at]:
                earlier.times_passed += 1
            del self.waiting[at]
            bisect.insort(self.running, row, key=lambda each: each.arrival)
            self._adopt(row)
            promised += self._num_missing(row)

    def _adopt(self, row: Row) -> None:
        """Hold the blocks of the row's next ids that are there already; one id at least is left to feed."""
        size = self._size
        while self._reuse and row.num_cached % size == 0 and row.num_pending > size:
            block = self.pool.find(row.name(row.num_cached // size, size))
            if block is None or len(row.table) > row.num_cached // size:
                return
            self.pool.share(block)
            row.table.append(block)
            row.num_cached += size
            row.num_reused += size
            self.num_reused += size

    def _shares(self) -> dict[Row, int]:
        """How many pending ids of each row are fed; rows that are left out wait for the next step."""
        shares = {row: 1 for row in self.running if row.num_pending == 1}
        readers = [row for row in self.running if row.num_pending > 1]
        if not readers:
            return shares
        left, claimed = self._budget, set[bytes]()
        oldest, *others = readers
        half = self._share(oldest, max(left // 2, self._size) if others else left, claimed)
        left -= half
        for row in sorted(others, key=lambda each: each.num_pending):
            if count := self._share(row, left, claimed):
                shares[row] = count
                left -= count
        shares[oldest] = half + self._more(oldest, half, left)
        return shares

    def _share(self, row: Row, most: int, claimed: set[bytes]) -> int:
        """Pending ids of a prompt to feed, at most `most`; up to a block's end if not all, and none if others do."""
        size = self._size
        block = row.num_cached // size
        at_start = row.num_cached % size == 0
        if self._reuse and at_start and row.num_pending >= size and row.name(block, size) in claimed:
            return 0
        count = self._whole_blocks(row, most)
        if self._reuse:
            claimed.update(row.name(each, size) for each in range(block, (row.num_cached + count) // size))
        return count

    def _more(self, row: Row, count: int, left: int) -> int:
        return self._whole_blocks(row, count + left) - count

    def _whole_blocks(self, row: Row, most: int) -> int:
        if row.num_pending <= most:
            return row.num_pending
        end = (row.num_cached + most) // self._size * self._size
        return max(0, end - row.num_cached)

    def _make_room(self, row: Row, count: int) -> bool:
        """Give the row blocks for `count` more tokens, those of younger rows if need be; False: not now."""
        if not self._num_missing(row, count):
            return True
        while not self._has_room(row, count):
            youngest = self.running[-1]
            if youngest is row:
                return False
            self._preempt(youngest)
        blocks = self.pool.allocate(self._num_missing(row, count))
        assert blocks is not None, "room was made"
        row.table += blocks
        self.fresh += blocks
        return True

    def _has_room(self, row: Row, count: int) -> bool:
        return self._num_missing(row, count) <= self.pool.num_available

    def _num_missing(self, row: Row, count: int | None = None) -> int:
        """Blocks that the row lacks for `count` more tokens, or for all it has to read and one more."""
        end = len(row.ids) + 1 if count is None else row.num_cached + count
        return max(0, -(-end // self._size) - len(row.table))

    def _num_shared(self, row: Row) -> int:
        """Blocks of a waiting row's ids that other rows hold now."""
        if not self._reuse:
            return 0
        count = 0
        for block in range((len(row.ids) - 1) // self._size):
            found = self.pool.find(row.name(block, self._size))
            if found is None or not self.pool.holders(found):
                break
            count += 1
        return count

    def _preempt(self, row: Row) -> None:
        self.running.remove(row)
        self._take_blocks(row)
        self.num_preemptions += 1
        self.add(row)

    def _take_blocks(self, row: Row) -> None:
        self.pool.release(row.table)
        row.table, row.num_cached = [], 0
