"""`leveret generate` with a form: the keys of the command line, and files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leveret.cli.arguments import ConfigCommand
from leveret.cli.generate_config import GenerateConfig
from leveret.commands import COMMANDS
from leveret.errors import ConfigError


def config_from(*words: str) -> GenerateConfig:
    config = ConfigCommand(COMMANDS["generate"]).config_from(words, {})
    assert isinstance(config, GenerateConfig)
    return config


def test_a_form_is_given_by_a_file_or_in_words(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "person.json", tmp_path / "g.lark"
    schema.write_text('{"type": "object"}', "utf-8-sig")
    grammar.write_text('start: "a"')
    common = ("models/tiny", "Well:")
    assert json.loads(config_from(*common, f"schema={schema}").form()["schema"]) == {"type": "object"}
    assert config_from(*common, "regex=[0-9]{3}").form() == {"regex": "[0-9]{3}"}
    assert config_from(*common, "choice=[yes, maybe]").form() == {"choice": ["yes", "maybe"]}
    assert config_from(*common, f"grammar={grammar}").form() == {"grammar": 'start: "a"'}
    assert config_from(*common).form() == {}


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        config_from("models/tiny", "x", "schema=none.json").form()
