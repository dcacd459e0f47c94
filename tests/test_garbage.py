"""While objects are made that stay, Python looks for no garbage; afterwards it does as before."""

from __future__ import annotations

import gc

import pytest

from leveret.garbage import without_collecting


@pytest.mark.parametrize("before", [True, False])
def test_collecting_is_as_it_was_afterwards(before: bool) -> None:
    collects = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with pytest.raises(KeyError), without_collecting():
            assert not gc.isenabled()
            with without_collecting():
                pass
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is before
    finally:
        (gc.enable if collects else gc.disable)()
