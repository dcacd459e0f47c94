"""The shape of the random model that benchmarks run, the same for both sides, set on the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Mistral without a sliding window; the defaults are the model of recipes/demo.yaml."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    vocab_size: int = 4096
    max_position_embeddings: int = 2048


QUICK = Shape(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=300)


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """One option for each number of `Shape`."""
    for field in fields(Shape):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=int, help=f"default {field.default}")
    parser.add_argument("--quick", action="store_true", help="a toy model and one round: does the script still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")


def shape_from(options: argparse.Namespace) -> Shape:
    """The shape that was asked for."""
    default = QUICK if options.quick else Shape()
    given = {field.name: getattr(options, field.name) for field in fields(Shape)}
    return Shape(**{name: getattr(default, name) if value is None else value for name, value in given.items()})


def write_model(shape: Shape, directory: Path) -> None:
    """A model directory with random weights, large enough that greedy choices are no ties."""
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.weights.save import save_model

    model = Decoder(ModelConfig(family="mistral", initializer_range=0.05, **vars(shape)))
    init_weights(model, seed=0)
    save_model(model, directory)
