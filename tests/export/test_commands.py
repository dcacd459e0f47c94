"""The lines of run.sh: a shell gives the programs exactly the words that the template writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from leveret.chat.messages import Message
from leveret.chat.template import BUILTIN_NAMES, builtin_template
from leveret.export.commands import SYSTEM, chat_words, llama_cpp_lines, script, upload_lines
from leveret.export.ollama import learn_pieces

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = ("1\n", "二", "🐇", "4", "5")


def lines_of(name: str) -> dict[str, str]:
    template = builtin_template(name)
    pieces = learn_pieces(template, TOKENS)
    return llama_cpp_lines("m x.gguf", 64, pieces=pieces, stops=template.stops, has_template=True, drop_bos=True)


def ran(lines: dict[str, str], tmp_path: Path, *arguments: str) -> list[str]:
    """What run.sh calls, word by word."""
    fake = tmp_path / "bin" / "llama-cli"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "run.sh").write_text(script(lines))
    environment = os.environ | {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "run.sh", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_words_around_the_users_turns_write_a_conversation_as_the_template_does(name: str) -> None:
    template = builtin_template(name)
    pieces = learn_pieces(template, TOKENS)
    words = chat_words(pieces, template.stops)
    assert words is not None
    begun = pieces.between["user", "assistant"].removeprefix(
        words.suffix
    )  # the space of Aquila's replies is the model's
    text = words.prompt
    for number, turn in enumerate(TURNS):
        text += words.prefix + turn + words.suffix if number % 2 == 0 else begun + turn + words.stop
    roles = ("user", "assistant")
    messages = [Message(roles[number % 2], turn) for number, turn in enumerate(TURNS)]
    if SYSTEM in words.prompt:
        messages.insert(0, Message("system", SYSTEM))
    assert text == template.render(messages, add_generation_prompt=True, variables=TOKENS).text


def test_the_suffix_of_huozi_has_the_newline_that_its_readme_forgot(tmp_path: Path) -> None:
    words = ran(lines_of("huozi"), tmp_path, "words")
    suffix = words[words.index("--in-suffix") + 1]
    assert suffix == "<|endofutterance|>\n<|beginofutterance|>助手\n"
    assert words[words.index("--in-prefix") + 1] == "\n<|beginofutterance|>用户\n"
    assert words[words.index("-r") + 1] == "<|endofutterance|>" and words[words.index("-m") + 1] == "m x.gguf"


def test_the_usual_line_uses_the_template_in_the_file_and_gives_a_conversation_no_bos_of_its_own(
    tmp_path: Path,
) -> None:
    words = ran(lines_of("chatml"), tmp_path)
    assert words == ["-m", "m x.gguf", "-c", "64", "--jinja", "-cnv", "--override-kv",
                     "tokenizer.ggml.add_bos_token=bool:false"]  # fmt: skip
    plain = llama_cpp_lines("m.gguf", 8, pieces=None, stops=(), has_template=False, drop_bos=False)
    assert ran(plain, tmp_path)[-2:] == ["-p", "Once upon a time"]


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(script(lines_of("chatml")))
    done = subprocess.run(["sh", "run.sh", "x"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "[chat | server | words]" in done.stderr


def test_upload_commands_name_both_hubs() -> None:
    assert upload_lines(Path("out dir"), "me/hare") == [
        "hf upload me/hare 'out dir' .",
        "modelscope upload me/hare 'out dir'",
    ]
