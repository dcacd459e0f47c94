"""A packed matrix that lies in memory once: in the order of its file, or in the order the compiled kernels read.

The two hold the same words, so one can be made from the other at any time, and a model of a gigabyte needs not two.
As soon as a kernel has asked for its order (`hold_for_kernels`) only that is kept. Whoever wants the file's order
(`qweight`, a state dict, another device) is given it, made anew. Copies of a module share the words and not what was
computed from them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from leveret.kernels.integer_product import stored_words


class HeldOnce(nn.Module):
    """The buffers `qweight`, int32 words (rows, O) as stored, and `words`, (tiles, rows, TILE): one of them is None.

    Both are there only after somebody put a new `qweight` in place; then it counts, and `words` are old.
    """

    qweight: Tensor
    words: Tensor | None
    out_features: int
    computed: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold what was computed from the buffers; a copy of the module begins with None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("words", None, persistent=False)

    @property
    def held_for_kernels(self) -> Tensor | None:
        """The words in the order of the kernels, if they are held so."""
        return self.words if self._buffers.get("qweight") is None else None

    def hold_for_kernels(self, words: Tensor) -> None:
        """From now on hold these words, which are those of `qweight` in the order of the kernels."""
        self._buffers["qweight"], self.words = None, words

    def hold_as_stored(self) -> None:
        """From now on hold the file's order."""
        self._buffers["qweight"], self.words = self.qweight, None

    def __getattr__(self, name: str) -> Any:
        """As in nn.Module; a `qweight` that is not held is made."""
        value = super().__getattr__(name)
        if name == "qweight" and value is None and (words := self._buffers["words"]) is not None:
            return stored_words(words, self.out_features)
        return value

    def __getstate__(self) -> dict[str, Any]:
        """What copy and pickle take along."""
        return vars(self) | dict.fromkeys(self.computed)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        words = self.held_for_kernels
        if words is None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        self._buffers["qweight"] = self.qweight
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._buffers["qweight"] = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.hold_as_stored()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.hold_as_stored()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
