"""The blocks of a paged KV cache: which are free, who holds which, and which can be reused by what they contain.

A cache is cut into blocks of a few dozen tokens. A request holds a list of block numbers, its table; token p of it lies
in block `table[p // C]`. No request needs room in one piece, and two requests that begin alike hold the same blocks.

    free  --allocate-->  held (count >= 1)  --release-->  free, or kept if its content has a name
                            ^  share: count + 1             |  found by name: held again
                            +-------------------------------+  allocate, when nothing is free: the oldest one is lost

A full block is named by a digest of all ids up to its end, the chain of `chained`: equal names mean equal keys and
values. The digest is cryptographic, as a collision would show one user's text to another. Here are numbers only, no
tensor; the memory itself is model/paged_cache.py.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

RUBBISH = 0
"""A block that nobody holds: tables are padded with it. It is never given out and never written."""


class BlockPool:
    """Who holds which of `num_blocks` blocks, numbered from 1; all are free at first."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, with a name; the oldest first
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated: free, or kept and given up for it."""
        return len(self._free) + len(self._kept)

    @property
    def num_held(self) -> int:
        """Blocks that somebody holds."""
        return len(self._holders)

    @property
    def num_kept(self) -> int:
        """Blocks that nobody holds and that can be found by their name."""
        return len(self._kept)

    def holders(self, block: int) -> int:
        """How many hold a block."""
        return self._holders.get(block, 0)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks without a name, each held once; None, and nothing changes, when there are not enough."""
        if count > self.num_available:
            return None
        blocks = []
        for _ in range(count):
            if not self._free:
                oldest, _ = self._kept.popitem(last=False)
                self._forget_name(oldest)
                self._free.append(oldest)
            blocks.append(self._free.pop())
        self._holders.update(dict.fromkeys(blocks, 1))
        return blocks

    def find(self, name: bytes) -> int | None:
        """The block of this name; nobody holds it on that account (`share`)."""
        return self._named.get(name)

    def share(self, block: int) -> None:
        """One more holds a block that is held or kept."""
        assert block in self._holders or block in self._kept, f"block {block} is free"
        self._kept.pop(block, None)
        self._holders[block] = self.holders(block) + 1

    def publish(self, block: int, name: bytes) -> None:
        """Name a held block by its content. If another has that name already, this one stays without."""
        assert block in self._holders, f"block {block} is not held"
        if name not in self._named and block not in self._names:
            self._names[block], self._named[name] = name, block

    def release(self, blocks: Sequence[int]) -> None:
        """One holder lets go of these blocks, a table from its start; of those kept, its end is given up first."""
        for block in reversed(blocks):
            assert block in self._holders, f"block {block} was released twice"
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._names:
                self._kept[block] = None
            else:
                self._free.append(block)

    def forget_all(self) -> None:
        """Take all names away: what was computed holds no longer (the model has changed)."""
        self._free.extend(self._kept)
        self._kept.clear()
        self._names.clear()
        self._named.clear()

    def _forget_name(self, block: int) -> None:
        del self._named[self._names.pop(block)]


def chained(before: bytes, ids: Sequence[int]) -> bytes:
    """The name of a full block: 16 bytes that stand for `before`, the name of the block before it, and its ids."""
    return hashlib.blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()
