"""The model that a stage works on, as far as files and earlier stages say what it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leveret.errors import DataError, LeveretError
from leveret.model.config import ModelConfig
from leveret.model.families import family_for
from leveret.precision.names import GROUP_SIZES
from leveret.recipe import Stage

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Of a weight in NF4: itself, its share of a scale in 8 bits, and that one's of a scale (precision/nf4_format.py)."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number, by the name of its type."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model's description and how its weights are stored."""

    config: ModelConfig
    origin: str
    """Where this is known from, for people."""
    bits: float = 16
    """Of a stored weight of a Linear inside the layers; of NF4 with its scales."""
    group_size: int | None = None
    """Weights that share a scale, if they are quantized (not of NF4)."""
    number_bytes: int = 2
    """Of a stored number that is not quantized."""

    def in_nf4(self) -> KnownModel:
        """The same one, its Linears rounded to NF4."""
        return replace(self, bits=NF4_BITS, group_size=None)

    def quantized(self, asked: Any) -> KnownModel:
        """What a `quantize` stage with the config `asked` makes of it."""
        return self.in_nf4() if asked.method == "nf4" else replace(self, bits=asked.bits, group_size=asked.group_size)

    def loaded(self, asked: Any) -> KnownModel:
        """What it is in memory for a command with the config `asked`, which may change its numbers as it is loaded."""
        dtype, kind = getattr(asked, "dtype", None), getattr(asked, "quantize", None)
        model = self if dtype is None else replace(self, number_bytes=BYTES[dtype])
        if kind is None or self.bits < 16:
            return model
        return model.in_nf4() if kind == "nf4" else _rounded(model, kind)


def _rounded(model: KnownModel, kind: str) -> KnownModel:
    return replace(model, bits=8) if kind == "int8" else replace(model, bits=4, group_size=GROUP_SIZES[0])


class UnknownModel(LeveretError):
    """A stage's model cannot be described before something exists; the message says what."""


def model_of(stage: Stage, earlier: Sequence[Stage], vocab_size: int | None) -> KnownModel:
    """The model that `stage` makes or uses. UnknownModel says what is missing."""
    config: Any = stage.config
    if stage.command.name == "pretrain" and config.init_from is None:
        rows = _vocabulary(config.tokenizer, earlier, vocab_size)
        return KnownModel(config=config.model.decoder_config(vocab_size=rows), origin=f"stage {stage.name}")
    if stage.command.name == "merge":
        first = _referred(config.models[0], earlier, vocab_size)
        layers = sum(end - begin for begin, end in config.layers or [])
        return replace(first, config=replace(first.config, num_hidden_layers=layers)) if layers else first
    reference = getattr(config, "init_from", None) or getattr(config, "model", None)
    if not isinstance(reference, str | Path):
        raise UnknownModel(f"stage {stage.name} names no model")
    return _referred(str(reference), earlier, vocab_size)


def _referred(reference: str, earlier: Sequence[Stage], vocab_size: int | None) -> KnownModel:
    """The model of a folder that is there, or that an earlier stage will write."""
    folder = Path(reference).expanduser()
    for place, maker in reversed([*enumerate(earlier)]):
        if maker.output is not None and (folder == maker.output or maker.output in folder.parents):
            made = model_of(maker, earlier[:place], vocab_size)
            return replace(_as_written(made, maker), origin=f"stage {maker.name}")
    if not (folder / "config.json").is_file():
        raise UnknownModel(
            f"{reference} is no folder with a config.json (a hub's model: download its config.json first)"
        )
    return _read(folder)


def _as_written(model: KnownModel, maker: Stage) -> KnownModel:
    """`model` as a stage that works on it stores it."""
    config: Any = maker.config
    if maker.command.name == "quantize":
        return model.quantized(config)
    if (training := getattr(config, "training", None)) is not None and getattr(config, "adapter", None) is None:
        return replace(model, number_bytes=4 if training.precision == "fp32" else 2)
    return model.loaded(config) if maker.command.name in ("merge", "convert") else model


def _read(folder: Path) -> KnownModel:
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"this config cannot be read: {error}", path=file) from None
    if not isinstance(values, dict):
        raise DataError(f"a JSON object belongs here, not a {type(values).__name__}", path=file)
    config = family_for(str(values.get("model_type"))).config_from_hf(values)
    quantization = values.get("quantization_config") or {}
    group = quantization.get("group_size")
    return KnownModel(
        config=config,
        origin=str(folder),
        bits=NF4_BITS if quantization.get("load_in_4bit") else int(quantization.get("bits", 16)),
        group_size=group if group and group > 0 else None,
        number_bytes=BYTES.get(str(values.get("dtype") or values.get("torch_dtype")), 2),
    )


def _vocabulary(tokenizer: Path | None, earlier: Sequence[Stage], vocab_size: int | None) -> int:
    if vocab_size is not None:
        return vocab_size
    if tokenizer is not None and (tokenizer / "tokenizer.json").is_file():
        from leveret.tokenizer.files import Tokenizer

        return Tokenizer.load(tokenizer).vocab_size
    for maker in earlier:
        if maker.command.name == "tokenizer" and maker.output == tokenizer:
            asked: Any = maker.config
            size: int = asked.vocab_size
            return size
    raise UnknownModel(f"the tokenizer {tokenizer} is not there yet, so its vocabulary is not known: give --vocab-size")
