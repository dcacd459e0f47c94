"""Recipes are checked as a whole: every mistake is named with its stage and key before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from leveret.errors import ConfigError
from leveret.recipe import load_recipe


def write(folder: Path, stages: str, header: str = "") -> Path:
    path = folder / "r.yaml"
    path.write_text(f"{header}\nstages:\n{stages}")
    return path


def test_a_recipe_resolves_names_outputs_seeds_and_references(workshop: Path) -> None:
    recipe = load_recipe(workshop / "tale.yaml")
    assert recipe.as_data() == {
        "name": "tale",
        "output": "runs/tale",
        "seed": 7,
        "stages": [
            {"name": "write", "write": {"output": "runs/tale/write", "text": "one", "source": None,
             "training": {"steps": 100, "seed": 7}, "then": "end", "model": None}},
            {"name": "second", "write": {"output": "runs/tale/second", "text": "two", "source": None,
             "training": {"steps": 5, "seed": 7}, "then": "end", "model": None}},
            {"name": "join", "join": {"output": "runs/tale/join", "seed": 7,
             "parts": ["runs/tale/write/text.txt", "runs/tale/second/text.txt"]}},
        ],
    }  # fmt: skip
    assert [stage.references for stage in recipe.stages] == [(), (), ("write", "second")]


def test_a_resolved_recipe_is_a_recipe_that_resolves_to_itself(workshop: Path) -> None:
    data = load_recipe(workshop / "tale.yaml").as_data()
    (workshop / "again.yaml").write_text(yaml.safe_dump(data))
    assert load_recipe(workshop / "again.yaml").as_data() == data


def test_name_and_output_default_to_the_file_name(workshop: Path) -> None:
    recipe = load_recipe(write(workshop, "  - write: {text: a}"))
    assert (recipe.name, recipe.output, recipe.seed) == ("r", Path("runs/r"), 0)


def test_overrides_address_the_recipe_or_a_stage_by_name(workshop: Path) -> None:
    recipe = load_recipe(workshop / "tale.yaml", ["output=elsewhere", "seed=9", "second.training.steps=8"])
    assert recipe.output == Path("elsewhere")
    first, second, join = (stage.config.model_dump() for stage in recipe.stages)
    assert first["training"] == {"steps": 100, "seed": 9}
    assert second["training"] == {"steps": 8, "seed": 9}
    assert join["parts"][1] == Path("elsewhere/second/text.txt")


def test_all_mistakes_of_all_stages_are_reported_at_once(workshop: Path) -> None:
    path = write(
        workshop,
        """
  - write: {texxt: one}
  - jion: {parts: []}
  - name: third
    write: {text: two, training: {steps: -1}, source: "@frst/x"}
  - name: fourth
    join: {parts: ["@third/a", "@fifth"]}
  - name: fifth
    write: {text: last}
  - write: {text: a}
  - name: output
    write: {text: a}
  - {write: {text: a}, join: {}}
  - write
  - run: {recipe: a.yaml}
""",
        header="colour: red",
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, ["wirte.text=x", "fifth.text.a=1"])
    report = str(caught.value)
    for expected in (
        "colour: there is no such key",
        "stage write: text: must be given",
        "stage write: texxt: there is no such key; did you mean text?",
        "stage 2: there is no command 'jion'; did you mean join?",
        "stage third: training.steps: should be greater than 0, not -1",
        "stage third: source: '@frst/x' names no earlier stage",
        "stage fourth: parts.1: '@fifth' names no earlier stage",
        "stage fifth: text.a: 'text' holds the value 'last'",
        "stage 6: the name 'write' is taken",
        "stage 7: 'output' cannot be a stage's name",
        "stage 8: names 2 commands (write, join)",
        "stage 9: write `command: {key: value}`, not 'write'",
        "stage 10: 'run' cannot be a stage",
        "override wirte.text=x: expected STAGE.key=value or one of name, output, seed; did you mean write?",
    ):
        assert expected in report, report


def test_a_reference_to_a_stage_that_writes_nothing_is_a_mistake(workshop: Path) -> None:
    with pytest.raises(ConfigError, match="names a stage that writes no folder"):
        load_recipe(write(workshop, '  - ask: {question: why}\n  - write: {text: a, source: "@ask"}'))


def test_a_reference_may_follow_a_prefix_and_other_at_signs_are_text(workshop: Path) -> None:
    texts = ["transformers:@write/model", "to: bob@example.com", "mail:@nobody"]
    stages = "  - write: {text: a}\n" + "".join(
        f"  - name: s{number}\n    write: {{text: '{text}'}}\n" for number, text in enumerate(texts)
    )
    recipe = load_recipe(write(workshop, stages))
    read = [stage.config.model_dump()["text"] for stage in recipe.stages[1:]]
    assert read == ["transformers:runs/r/write/model", *texts[1:]]
    assert [stage.references for stage in recipe.stages[1:]] == [("write",), (), ()]


def test_a_reference_may_follow_a_prefix_with_a_dot(workshop: Path) -> None:
    recipe = load_recipe(
        write(workshop, '  - write: {text: a}\n  - name: b\n    write: {text: "llama.cpp:@write/m.gguf"}')
    )
    assert recipe.stages[1].config.model_dump()["text"] == "llama.cpp:runs/r/write/m.gguf"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            "  - write: {text: a, output: x}\n  - name: b\n    write: {text: b, output: ./x}",
            "the output of stage write",
        ),
        ("  - write: {text: a, output: runs/r}", "the run's own folder"),
        ("  - write: {text: a, output: .}", "the run's own folder"),
        ("  - name: superseded\n    write: {text: a}", "cannot be a stage's name"),
    ],
)
def test_a_folder_that_belongs_to_something_else_is_no_output(workshop: Path, stages: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe(write(workshop, stages))


def test_two_at_signs_begin_a_text_with_one(workshop: Path) -> None:
    recipe = load_recipe(write(workshop, '  - write: {text: "@@home"}'))
    assert recipe.stages[0].config.model_dump()["text"] == "@home"


def test_a_rehearsal_is_small_and_writes_nowhere_else(workshop: Path) -> None:
    path = write(workshop, '  - write: {text: a, output: precious}\n  - join: {parts: ["@write/text.txt"]}')
    write_stage, join_stage = load_recipe(path, rehearsal=True).stages
    assert write_stage.output == Path("runs/r-rehearsal/write")
    assert write_stage.config.model_dump()["training"]["steps"] == 2
    assert join_stage.config.model_dump()["parts"] == [Path("runs/r-rehearsal/write/text.txt")]


def test_a_file_without_stages_is_no_recipe(workshop: Path) -> None:
    (workshop / "x.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match="is not a recipe"):
        load_recipe(workshop / "x.yaml")
