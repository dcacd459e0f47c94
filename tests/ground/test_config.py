"""Configs: all mistakes at once with suggestions, docstrings as help, rehearsals that only shrink, fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from leveret.config import (
    Config,
    Positional,
    Rehearsal,
    dotted_keys,
    fingerprint,
    mistakes,
    parse_config,
    rehearsed,
    suggest,
)
from leveret.errors import ConfigError


class Training(Config):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The peak."""
    schedule: Literal["cosine", "linear"] = "cosine"
    max_steps: Annotated[int | None, Field(ge=1), Rehearsal(3)] = None
    rows: Annotated[int, Rehearsal(4)] = 16
    must_reach: Annotated[float | None, Rehearsal(None)] = 0.9
    save_every: Annotated[int | None, Rehearsal(5, if_set=True)] = None

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.rows % 2:
            raise ValueError(f"rows ({self.rows}) must be even")
        return self


class Source(Config):
    path: Path
    limit: Annotated[int, Rehearsal(10)] = 1000


class Whole(Config):
    model: Annotated[str, Positional(0)]
    output: Path = Path("out")
    training: Training = Training()
    second: Training | None = None
    sources: tuple[Source, ...] = ()


def test_a_good_mapping_becomes_a_frozen_config() -> None:
    config = parse_config(Whole, {"model": "m", "training": {"learning_rate": "1e-4"}}, source="s")
    assert config.training.learning_rate == 1e-4
    with pytest.raises(ValidationError):
        config.model = "n"  # type: ignore[misc]


def test_all_mistakes_come_at_once_with_their_keys_and_suggestions() -> None:
    data = {
        "outptu": "a",
        "learning_rate": 1,
        "training": {"learning_rate": -1, "schedule": "cosin", "learning-rate": 3, "rows": "many"},
        "sources": [{"path": "x"}, {"pth": "y"}],
    }
    with pytest.raises(ConfigError) as caught:
        parse_config(Whole, data, source="r.yaml")
    assert str(caught.value).splitlines()[0] == "r.yaml has 9 mistakes:"
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "learning_rate: there is no such key; did you mean training.learning_rate?",
        "model: must be given",
        "outptu: there is no such key; did you mean output?",
        "sources.1.path: must be given",
        "sources.1.pth: there is no such key; did you mean sources.1.path?",
        "training.learning-rate: there is no such key; did you mean training.learning_rate?",
        "training.learning_rate: should be greater than 0, not -1",
        "training.rows: should be a valid integer, unable to parse string as an integer, not 'many'",
        "training.schedule: should be 'cosine' or 'linear', not 'cosin'; did you mean cosine?",
    ]
    assert sorted(mistakes(Whole, data)) == sorted(line.strip() for line in str(caught.value).splitlines()[1:])


def test_mistakes_are_told_in_words_of_ours() -> None:
    class Choice(Config):
        rows: Annotated[list[str], Field(min_length=1)] | Path = Path("x")

    assert mistakes(Choice, {"rows": {}}) == ["rows: should be a valid list, not {}", "rows: should be a path, not {}"]
    assert "rows: should have at least 1 item, not 0, not []" in mistakes(Choice, {"rows": []})


def test_one_mistake_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Whole, {"model": "m", "training": {"rows": 3}}, source="r.yaml")
    assert str(caught.value) == "r.yaml: training: rows (3) must be even"


def test_numbers_are_accepted_where_text_is_wanted_and_nan_and_infinity_nowhere() -> None:
    assert parse_config(Whole, {"model": 7}, source="s").model == "7"
    for value in (float("nan"), float("inf")):
        assert mistakes(Whole, {"model": "m", "training": {"learning_rate": value}})


def test_the_docstring_under_a_field_is_its_help() -> None:
    assert Training.model_fields["learning_rate"].description == "The peak."


def test_dotted_keys_name_the_keys_of_nested_configs() -> None:
    keys = list(dotted_keys(Whole))
    assert keys[:3] == ["model", "output", "training.learning_rate"]
    assert "second.rows" in keys and keys[-1] == "sources"


class Numbers(Config):
    steps: int = 1
    rate: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weights: list[float | list[float]] = Field(default_factory=list)
    quick: bool = False
    tools: bool | int = 0


@pytest.mark.parametrize("data", [
    {"steps": True}, {"rate": False}, {"betas": [True, 0.9]}, {"weights": [1, [0.5, True]]},
])  # fmt: skip
def test_true_and_false_are_no_numbers(data: dict[str, Any]) -> None:
    (found,) = mistakes(Numbers, data)
    assert found.startswith(f"{next(iter(data))}: should be a number, not ") and found.endswith(("true", "false"))


def test_numbers_may_be_written_in_every_other_way() -> None:
    data = {"steps": 1e3, "rate": 1, "betas": ["0.5", 0], "weights": [1, [2]], "quick": "yes", "tools": True}
    config = parse_config(Numbers, data, source="s")
    assert (config.steps, config.rate, config.betas, config.quick, config.tools) == (1000, 1.0, (0.5, 0.0), True, True)


def test_a_rehearsal_makes_numbers_smaller_and_never_larger() -> None:
    config = Whole(model="m", training=Training(rows=2), sources=(Source(path=Path("a")),))
    small = rehearsed(config)
    assert (small.training.rows, small.training.max_steps, small.training.must_reach) == (2, 3, None)
    assert small.sources[0].limit == 10
    assert small.training.save_every is None
    assert rehearsed(Training(save_every=100)).save_every == 5
    assert (small.second, small.model, small.training.learning_rate) == (None, "m", 1e-3)
    assert rehearsed(Whole(model="m", second=Training(max_steps=2))).second == Training(
        max_steps=2, rows=4, must_reach=None
    )


def test_fingerprints_depend_on_values_and_not_on_order_or_form() -> None:
    @dataclass
    class Point:
        x: int

    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint(Path("a/b")) == fingerprint("a/b")
    assert fingerprint({3, 1}) == fingerprint({1, 3})
    assert fingerprint(Point(1)) == fingerprint({"x": 1})
    assert fingerprint(Source(path=Path("a"))) == fingerprint({"path": "a", "limit": 1000})
    assert fingerprint(1) != fingerprint(1.5) != fingerprint("1.5")
    with pytest.raises(TypeError, match="object has no fingerprint"):
        fingerprint(object())
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learning-rat", "learning_rate"),
        ("Model", "model"),
        ("rate", "learning_rate"),
        ("xyzzy", None),
        ("", None),
    ],
)
def test_suggest_finds_the_nearest_name(name: str, expected: str | None) -> None:
    choices: Mapping[str, Any] = {"learning_rate": 1, "model": 2, "output": 3}
    assert suggest(name, choices) == expected
