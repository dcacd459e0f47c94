"""What the result was made of: leveret-merge.json for programs, a card for people, and the files it takes over.

A merge cannot be told from its weights, so the record lies beside them: method and numbers, and for each model its
name and hashes of its weights' fingerprint, config and tokenizer, by which the very models can be found again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leveret.merge.config import METHOD_KEYS, USED, MergeConfig
from leveret.merge.settings import default_weights
from leveret.merge.sources import Source
from leveret.paths import atomic_write, sha256_file
from leveret.tokenizer.files import Tokenizer
from leveret.version import VERSION
from leveret.weights.companions import copy_companions
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.safetensors import read_json

RECORD = "leveret-merge.json"

PAPERS = {
    "linear": "2203.05482", "task-arithmetic": "2212.04089", "ties": "2306.01708", "dare": "2311.03099",
    "dare-ties": "2311.03099", "model-stock": "2403.19522",
}  # fmt: skip
"""arXiv numbers, for the card."""


def carry_over(first: Source, target: Path, added: Sequence[Mapping[str, Any]]) -> None:
    """Copy tokenizer, template, tools and the like, and give the tokenizer the added tokens of the other models."""
    copy_companions(first.folder, target)
    if added:
        _add_tokens(target, added)


def write_config(
    first: Source, target: Path, *, dtype: str | None, token_rows: int, layers: Sequence[tuple[Source, int, int]]
) -> None:
    """The first model's config.json with what the merge has changed.

    layers: (source, first, end) of what was stacked; empty where the layers are the first model's.
    """
    values = read_json(first.folder / "config.json")
    values.pop("auto_map", None)  # it names code that is not copied, and that nobody here needs
    if dtype is not None:
        values |= dict.fromkeys([key for key in ("dtype", "torch_dtype") if key in values] or ["torch_dtype"], dtype)
    values["vocab_size"] = token_rows
    if layers:
        values["num_hidden_layers"] = sum(stop - start for _, start, stop in layers)
        if "layer_types" in values:
            kinds = [read_json(source.folder / "config.json")["layer_types"][a:b] for source, a, b in layers]
            values["layer_types"] = [kind for part in kinds for kind in part]
    atomic_write(target / "config.json", _json(values))


def record(config: MergeConfig, base: Source | None, models: Sequence[Source], notes: Sequence[str]) -> dict[str, Any]:
    """The content of leveret-merge.json."""
    keys = sorted(USED[config.method] & METHOD_KEYS - {"base", "weights", "layers"})
    weights = config.weights or default_weights(config)
    weighted = "weights" in USED[config.method]
    entries = []
    for number, model in enumerate(models):
        entry = _identity(model)
        if weighted:
            entry["weight"] = weights[number]
        if config.layers is not None:
            entry["layers"] = config.layers[number]
        entries.append(entry)
    return {
        "leveret": VERSION,
        "method": config.method,
        "settings": {key: getattr(config, key) for key in keys},
        "rules": [rule.model_dump(exclude_none=True) for rule in config.rules],
        "base": None if base is None else _identity(base),
        "models": entries,
        "vocabulary": config.vocabulary,
        "dtype": config.dtype,
        "seed": config.seed if "drop" in keys else None,
        "notes": list(notes),
    }


def write_record(target: Path, content: Mapping[str, Any]) -> None:
    """leveret-merge.json and README.md."""
    atomic_write(target / RECORD, _json(content))
    atomic_write(target / "README.md", card(content))


def card(content: Mapping[str, Any]) -> str:
    """The card, with the header that the Hugging Face hub reads."""
    base, models = content["base"], content["models"]
    every = [*([base] if base else []), *models]
    hub = list(dict.fromkeys(f"- {model['name']}" for model in every if _is_hub_name(model["name"])))
    header = ["---", *(["base_model:", *hub] if hub else []), "tags:", "- leveret", "- merge", "---"]
    settings = [f"{key} {json.dumps(value)}" for key, value in content["settings"].items() if value is not False]
    method = ", ".join([content["method"], *settings])
    if content["method"] in PAPERS:
        method += " ([arXiv {0}](https://arxiv.org/abs/{0}))".format(PAPERS[content["method"]])
    columns = [key for key in ("weight", "layers") if any(key in model for model in models)]
    lines = ["| model | " + "".join(f"{column} | " for column in columns) + "fingerprint of its weights |"]
    lines += ["|---|" + "---|" * (len(columns) + 1)]
    for model in models:
        cells = [f"`{_short(model['name'])}`", *(json.dumps(model[column]) for column in columns)]
        lines.append("| " + " | ".join([*cells, f"`{(model['weights'] or '-')[:16]}`"]) + " |")
    after = [f"Base: `{_short(base['name'])}`, fingerprint `{(base['weights'] or '-')[:16]}`."] if base else []
    after += [f"Rules for single tensors ({len(content['rules'])}), hashes and all else: `{RECORD}`."]
    return "\n".join(
        [*header, "", "# A merged model", "", f"Merged by `leveret merge` {content['leveret']}: {method}.",
         "", *lines, "", *after, ""]
    )  # fmt: skip


def _identity(model: Source) -> dict[str, Any]:
    tokenizer = model.folder / "tokenizer.json"
    return {
        "name": model.name,
        "weights": fingerprint_of(model.folder),
        "config_sha256": sha256_file(model.folder / "config.json"),
        "tokenizer_sha256": sha256_file(tokenizer) if tokenizer.is_file() else None,
    }


def _add_tokens(folder: Path, added: Sequence[Mapping[str, Any]]) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] += added
    atomic_write(path, _json(content))
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added
        }
        atomic_write(settings_file, _json(settings))
    ids = Tokenizer.load(folder).ids
    wrong = [entry["content"] for entry in added if ids.get(entry["content"]) != entry["id"]]
    assert not wrong, f"the united tokenizer gives {wrong[:3]} other ids"


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not Path(name).exists() and not name.startswith((".", "/"))


def _short(name: str) -> str:
    """A path without the folders above the last two: a card is published, a disk's layout is not."""
    return "/".join(Path(name).parts[-2:])


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
