"""Fine-tuning with an adapter: what is trained of a frozen model, and the folders that come of it.

    output/
      adapter/   the trained change in peft's layout, with tokenizer, template and tools: usable as a model's folder
      model/     with `merge: true`: the whole model, and merge.json, which says what rounding lost of each change

Tokens that the template or the tools add are new to the model, so their rows are always trained, alone; all other rows
stay as they are, unless a whole table is named under `modules_to_save`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leveret.console import Console
from leveret.errors import ConfigError, TokenizerError
from leveret.finetune.adapter_config import AdapterTraining
from leveret.hub import is_quantized
from leveret.model.decoder import Decoder
from leveret.model.lora import LoraLinear, LoraSettings
from leveret.model.lora_targets import add_lora, train_whole
from leveret.model.moe import SparseMixture
from leveret.model.prefix import add_prefix
from leveret.model.token_rows import train_rows
from leveret.paths import atomic_directory, atomic_write, sha256_file
from leveret.precision.swap import num_parameters, round_to_nf4
from leveret.tokenizer.files import Tokenizer
from leveret.trainer.outcome import MODEL
from leveret.weights.adapter import TENSORS, save_adapter, unfit_for_peft
from leveret.weights.companions import copy_companions
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.merged import load_merged
from leveret.weights.save import save_generation, save_model

ADAPTER = "adapter"
MERGE = "merge.json"
LOST_MUCH = 0.5
"""From this part of a change on, what rounding lost is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """An adapter in training."""

    config: AdapterTraining
    start: Path
    """The folder of the model underneath."""
    reference: str
    """Its name for others: of a hub, or the folder's whole path."""
    whole: tuple[str, ...]
    """Modules trained whole, by their names in the files."""

    def save(self, model: Decoder, folder: Path) -> None:
        """Write the adapter, and how the model stops."""
        save_adapter(
            model,
            folder,
            base=self.reference,
            fingerprint=fingerprint_of(self.start),
            saved_modules=self.whole,
        )
        save_generation(model, folder)


def adapt(
    model: Decoder, config: AdapterTraining, tokenizer: Tokenizer, new_rows: Iterable[int],
    *, start: Path, reference: str, seed: int, console: Console,
) -> Adaptation:  # fmt: skip
    """Freeze `model` and put on it what is trained; ConfigError when the config names something that is not there."""
    refuse_merging_into_quantized(config, start)
    total = num_parameters(model)
    if config.base == "nf4":
        _round_base(model, start, console)
    whole: list[str] = []
    if config.method == "prefix":
        what = _put_prefix(model, config, [*new_rows], seed=seed)
    else:
        what, whole = _put_lora(model, config, {*new_rows, *_token_ids(config.train_tokens, tokenizer)}, seed=seed)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    console.info(f"adapter: {trained:,} parameters are trained beside {total:,} frozen ones ({trained / total:.2%})")
    console.info(f"adapter: {what}")
    if (unfit := unfit_for_peft(model)) is not None:
        console.warn(f"peft will not load this adapter: it has no {unfit}; merge it for other programs (adapter.merge)")
    return Adaptation(config=config, start=start, reference=reference, whole=tuple(whole))


def _put_lora(model: Decoder, config: AdapterTraining, rows: set[int], *, seed: int) -> tuple[str, list[str]]:
    """What is trained, in words, and the modules trained whole."""
    settings = LoraSettings(
        rank=config.rank, alpha=config.alpha, dropout=config.dropout, rslora=config.rslora, dora=config.dora
    )
    chosen = add_lora(model, settings, config.targets, seed=seed)
    whole = train_whole(model, config.modules_to_save)
    _refuse_changed_twice(model, rows, whole)
    tables = [model.get_submodule(name) for name in ("embed_tokens", "lm_head")]
    in_embedding, in_head = ([] if next(table.parameters()).requires_grad else sorted(rows) for table in tables)
    train_rows(model, in_embedding, head_ids=in_head)
    names = ", ".join(sorted({name.rpartition(".")[2] for name in chosen}))
    words = f"{len(chosen)} matrices ({names})" + (f"; whole: {', '.join(whole)}" if whole else "")
    return words + (f"; rows of {len(rows)} tokens" if in_embedding or in_head else ""), whole


def _refuse_changed_twice(model: Decoder, rows: set[int], whole: list[str]) -> None:
    """ConfigError where the head would have a LoRA and be changed itself: one of the two would be lost."""
    if not isinstance(model.lm_head, LoraLinear):
        return
    tied = model.config.tie_word_embeddings
    if not rows and not (tied and next(model.embed_tokens.parameters()).requires_grad):
        return
    what = f"the rows of {len(rows)} tokens in it are" if rows else f"it is {', '.join(whole)}, which is"
    raise ConfigError(
        f"adapter.targets puts a LoRA on lm_head, but {what} trained too" + (" (it is the embedding)" if tied else ""),
        hint=f"train it whole: adapter.modules_to_save: [{'embed_tokens' if tied else 'lm_head'}], and targets without "
        "lm_head",
    )


def _put_prefix(model: Decoder, config: AdapterTraining, new_rows: list[int], *, seed: int) -> str:
    if new_rows:
        raise ConfigError(
            f"the template or the tools add {len(new_rows)} tokens, whose rows a prefix cannot train",
            hint="use adapter.method: lora, or start from a model that has these tokens",
        )
    add_prefix(model, config.prefix_tokens, seed=seed)
    return f"a prefix of {config.prefix_tokens} tokens before every layer"


def _round_base(model: Decoder, start: Path, console: Console) -> None:
    if is_quantized(start):
        console.info(f"adapter: {start} is quantized already, so adapter.base changes nothing")
        return
    before = _bytes(model)
    names = round_to_nf4(model)
    after = _bytes(model)
    console.info(
        f"adapter: {len(names)} matrices are rounded to NF4 (model: {before / 1e6:,.1f} -> {after / 1e6:,.1f} MB)"
    )


def _bytes(model: Decoder) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}.values())


def refuse_merging_into_quantized(config: AdapterTraining, start: Path) -> None:
    """ConfigError before any training if there will be nothing to merge into."""
    if config.merge and is_quantized(start):
        raise ConfigError(
            f"adapter.merge asks to merge into {start}, which is quantized: the change would be rounded away",
            hint="train on the model it was quantized from, or leave merge out and load the adapter",
        )


def refuse_trained_routers(model: Decoder) -> None:
    """ConfigError when the adapter trains routers, which `freeze_router` would leave at their start."""
    for module in model.modules():
        if isinstance(module, SparseMixture) and any(part.requires_grad for part in module.gate.parameters()):
            raise ConfigError(
                "adapter.targets or adapter.modules_to_save names the routers, but training.freeze_router leaves them "
                "as they are",
                hint="take the routers (gate) out of the adapter, or leave freeze_router out",
            )


def merge_beside(output: Path, adaptation: AdapterTraining, start: Path, console: Console) -> None:
    """Write output/model from output/adapter, if that is asked for and has not been done."""
    source, target = output / ADAPTER, output / MODEL
    made_of = sha256_file(source / TENSORS)
    stale = target.is_dir() and _merged_from(target) != made_of
    if not adaptation.merge:
        if stale:
            console.warn(f"{target} is of another run than {source}; remove it, or set adapter.merge")
        return
    if target.is_dir() and not stale:
        return
    model, report = load_merged(source, base=start)
    stops = json.loads((source / "generation_config.json").read_text(encoding="utf-8-sig")).get("eos_token_id")
    model.config = replace(model.config, eos_token_id=tuple(stops) if isinstance(stops, list) else stops)
    with atomic_directory(target) as draft:
        save_model(model, draft)
        copy_companions(source, draft)
        files = sorted(file.name for file in draft.iterdir())
        record = {"adapter": made_of, "dtype": report.dtype, "lost": dict(report.lost), "files": files}
        atomic_write(draft / MERGE, json.dumps(record, indent=1) + "\n")
    console.info(report.line())
    if max(report.lost.values()) > LOST_MUCH:
        console.warn(f"much of the change is below the precision of {report.dtype}: the merged model answers "
                     f"differently from the adapter (each matrix: {target / MERGE})")  # fmt: skip
    console.info(f"saved {target}")


def _merged_from(folder: Path) -> str | None:
    """A hash of the adapter that a merged model is of; None when a file of the model is gone."""
    file = folder / MERGE
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    whole = all((folder / name).is_file() for name in content.get("files", ()))
    return content.get("adapter") if whole else None


def _token_ids(tokens: list[str], tokenizer: Tokenizer) -> list[int]:
    try:
        return [tokenizer.id_of(token) for token in tokens]
    except TokenizerError as error:
        raise ConfigError(
            f"adapter.train_tokens: {error.message}", hint="name tokens as they are in the vocabulary"
        ) from (error)
