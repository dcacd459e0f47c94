"""Whether what a GGUF file of ours carries is still what other programs read in it.

A file says most things twice: in the keys that every program reads, and in the files of the model's folder, which it
carries for the way back. Tools that edit a GGUF file change the keys. A new template or another end of a reply is then
taken from the keys; other tokens or merges, which nothing could be made of that is certain, are an error. (The numbers
of the network are compared in gguf_metadata.py.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leveret.chat.template import template_for
from leveret.errors import TokenizerError
from leveret.paths import atomic_write
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf_file import GgufFile
from leveret.weights.gguf_metadata import CONFIG_KEY, REWRITE_HINT
from leveret.weights.gguf_sentencepiece import scores_of
from leveret.weights.gguf_tokenizer import lines_of, vocabulary_of, without_generation


def refuse_other_tokens(file: GgufFile, tokenizer_json: str) -> None:
    """TokenizerError where the tokens, merges or scores of the keys are not those of the tokenizer.json in the file."""
    content = json.loads(tokenizer_json)
    told = {name: file.keys.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges", "scores")}
    size = len(told["tokens"] or ())
    tokens, types = vocabulary_of(Tokenizer(tokenizer_json), content, size)
    wanted: dict[str, Any] = {"tokens": list(tokens), "token_type": list(types)}
    if told["scores"] is None:
        wanted["merges"] = list(lines_of(content))
    else:
        wanted["scores"] = list(scores_of(content, size))
    if wrong := [f"tokenizer.ggml.{name}" for name, values in wanted.items() if told[name] != values]:
        raise TokenizerError(
            f"{file.path} was changed after it was written: {' and '.join(wrong)} are not those of the tokenizer.json "
            "that it carries",
            hint=REWRITE_HINT,
        )


def take_changes(file: GgufFile, tokenizer: Tokenizer, folder: Path) -> str:
    """Put what the keys say otherwise into a folder with the carried files; what that was, or nothing.

    tokenizer: the file's, with the template and the special tokens of the keys.
    """
    carried = Tokenizer.load(folder)
    plain = None if carried.chat_template is None else without_generation(carried.chat_template)
    template = tokenizer.chat_template != plain
    ids = [(tokenizer.bos_id, carried.bos_id), (tokenizer.eos_id, carried.eos_id), (tokenizer.pad_id, carried.pad_id)]
    tokens = any(theirs is not None and ours != theirs for ours, theirs in ids)
    ends = _ends_elsewhere(file, carried)
    if template or tokens:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save(folder)
    if ends:
        settings = folder / "generation_config.json"
        said = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
        atomic_write(settings, json.dumps(said | {"eos_token_id": ends}, indent=2, ensure_ascii=False) + "\n")
    return " and ".join(
        [*(["another chat template"] if template else []), *(["other special tokens"] if tokens or ends else [])]
    )


def _ends_elsewhere(file: GgufFile, carried: Tokenizer) -> list[int]:
    """The ids that end a reply by the keys, if one of them ends none by the carried files; else none."""
    told = [file.keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = sorted({int(index) for index in told if index is not None})
    known = _ids(json.loads(file.keys.get(CONFIG_KEY) or "{}").get("eos_token_id"))
    known += [] if carried.eos_id is None else [carried.eos_id]
    known += [] if carried.chat_template is None else template_for(carried).stop_ids(carried)
    return ends if set(ends) - set(known) else []


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
