"""Fine-tune a model: samples from conversations and tool requests, X-ray, steps, a model folder.

Only what the assistant says is trained, its stop token included, unless `mask` says otherwise (data/masks.py). With a
tool set, each tool becomes one token, whose row starts from the words of its name and description. Before the first
step the label X-ray shows what is trained, and refuses what cannot be right. Killed at any moment, the same command
goes on and ends with the same bits. With `adapter`, the model is frozen and a small change beside it is trained
(adapter.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leveret.chat.template import BUILTIN_NAMES, ChatTemplate, builtin_template, template_for
from leveret.commands import StageResult
from leveret.console import Console
from leveret.data.excluding import Exclusions
from leveret.data.files import ReadReport
from leveret.data.mixture import Mixture
from leveret.data.sample_rows import SampleRows, pack_samples
from leveret.errors import ConfigError
from leveret.finetune.adapter import ADAPTER, Adaptation, adapt, merge_beside, refuse_merging_into_quantized
from leveret.finetune.config import FinetuneConfig
from leveret.finetune.neftune import NoisyLoss
from leveret.finetune.new_tokens import add_rows, add_tokens
from leveret.finetune.samples import Writing, read_samples
from leveret.garbage import without_collecting
from leveret.hub import resolve_whole_model
from leveret.model.decoder import Decoder
from leveret.tokenizer.dropout import BpeDropout
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet
from leveret.trainer import xray
from leveret.trainer.batches import BatchSource
from leveret.trainer.claim import claimed
from leveret.trainer.loop import Run, checkpoints_of, train
from leveret.trainer.objective import CausalLoss
from leveret.trainer.outcome import MODEL, finished_figures, model_fingerprint, publish
from leveret.trainer.validation import Validation
from leveret.trainer.world import World, joined
from leveret.weights.load import load_model
from leveret.weights.save import save_model

_MOST_FORMS = 8
"""Passes over the data that BPE dropout draws anew for; all of them are in memory."""


def run(config: FinetuneConfig, console: Console) -> StageResult:
    """Fine-tune as `config` says; `output/model` is the result. Resumes, or finds that all is done."""
    with joined(config.training) as world, claimed(config.output, world, console):
        return _run(config, world, console)


def _run(config: FinetuneConfig, world: World, console: Console) -> StageResult:
    start = resolve_whole_model(config.model, purpose="fine-tuning")
    tokenizer = Tokenizer.load(start)
    template = _template(config.template, tokenizer)
    tools = None if config.tools is None else ToolSet.load(config.tools)
    added = add_tokens(tokenizer, template, tools)
    dialect = None if tools is None else FunctionalDialect(tools, reserved=tokenizer.special_ids)
    excluded, none = Exclusions.of(config.exclude_rows), Exclusions([])
    writing = Writing(
        tokenizer=tokenizer, template=template, dialect=dialect, mask=config.mask,
        split_above=config.training.sequence_length if config.on_long == "split" else None,
    )  # fmt: skip
    dropout = None if config.bpe_dropout is None else BpeDropout(tokenizer, config.bpe_dropout)
    rows = [_rows(source.path, config, writing, console, excluded, dropout) for source in config.data]
    excluded.refuse_unknown()
    held_out = [_rows(path, config, writing, console, none, None) for path in config.validation]
    weights = [source.weight for source in config.data]
    identity = {
        "model": model_fingerprint(start),
        "tokenizer": tokenizer.fingerprint,
        "template": template.source,
        "tools": None if tools is None else tools.to_openai(),
        "data": [{"content": _content(part), "weight": w} for part, w in zip(rows, weights, strict=True)],
        "bpe_dropout": config.bpe_dropout,
        "neftune": config.neftune,
        "functional_token_weight": config.functional_token_weight,
        "training": config.training.identity(),
        "seed": config.seed,
    }
    if config.adapter is not None:
        refuse_merging_into_quantized(config.adapter, start)
        identity["adapter"] = config.adapter.identity()
    result = f"{MODEL}/config.json" if config.adapter is None else f"{ADAPTER}/adapter_config.json"
    if (figures := finished_figures(config.output, identity, console, world, result=result)) is not None:
        console.info(f"{(config.output / result).parent} is there already, trained with these settings")
        _merge(config, start, world, console)
        return StageResult(output=config.output, summary=figures)
    sources = {str(source.path): part.samples for source, part in zip(config.data, rows, strict=True)}
    labels = xray.examine(sources, tokenizer=tokenizer, stops=template.stops)
    if world.is_main:
        xray.show(labels, tokenizer=tokenizer, console=console, page=config.output / "xray.html")
    model, adaptation = _model(start, config, tokenizer, template, dialect, added, console)
    mixture = Mixture(list(zip(rows, weights, strict=True)), seed=config.seed)
    training = Run(
        config=config.training,
        source=BatchSource(
            mixture, config.training, rows_in_one_epoch=len(mixture),
            token_weights=_token_weights(config, tokenizer, dialect),
        ),
        objective=_objective(model, config),
        folder=config.output,
        identity=identity,
        seed=config.seed,
        title="finetune",
        tokenizer=tokenizer,
        world=world,
        validate=Validation(model, held_out, config.training, tokenizer, world) if held_out else None,
    )  # fmt: skip
    summary: dict[str, Any] = train(model, training, console).as_dict()
    tokenizer.chat_template = template.source
    checkpoints = checkpoints_of(config.output, identity, config.training, console, world)
    more = None if tools is None else tools.save
    folder = publish(
        model,
        tokenizer,
        config.output,
        checkpoints=checkpoints,
        figures=summary,
        keep_final_checkpoint=config.training.keep_final_checkpoint,
        keep_best=config.training.keep_best,
        add_files=more,
        name=MODEL if adaptation is None else ADAPTER,
        save=save_model if adaptation is None else adaptation.save,
    )
    console.info(f"saved {folder}")
    _merge(config, start, world, console)
    return StageResult(output=config.output, summary=summary)


def _template(name: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The template asked for: a built-in one, a file, or the model's own."""
    if name is None:
        return template_for(tokenizer)
    if name not in BUILTIN_NAMES and Path(name).is_file():
        return ChatTemplate(Path(name).read_text(encoding="utf-8"), name=name)
    template = builtin_template(name)
    return ChatTemplate(template.source, name=name, variables=tokenizer.special_tokens)


@without_collecting()
def _rows(
    path: Path, config: FinetuneConfig, writing: Writing, console: Console, excluded: Exclusions,
    dropout: BpeDropout | None,
) -> SampleRows:  # fmt: skip
    reading = ReadReport()
    groups = excluded.without(read_samples(path, reading, writing), lambda parts: parts[0][1].key, reading)
    written = [part for parts in groups for part in parts]
    for line in reading.lines():
        console.info(f"{path}: {line}")
    samples, size = [sample for _, sample in written], config.training.sequence_length
    rows = pack_samples(samples, size, on_long=config.on_long, on_untrained=config.on_untrained)
    if dropout is not None:
        epochs = -(-config.training.total_rows(len(rows)) // len(rows)) if len(config.data) == 1 else _MOST_FORMS
        forms = writing.forms(written, dropout, passes=min(epochs, _MOST_FORMS), seed=config.seed)
        rows = pack_samples(samples, size, on_long=config.on_long, on_untrained=config.on_untrained, passes=forms)
    report = rows.report
    console.info(f"{path}: {report.num_tokens:,} tokens packed into {report.num_rows:,} rows")
    for number, what in (
        (report.num_dropped_long, f"dropped: longer than {config.training.sequence_length} tokens"),
        (report.num_truncated, f"cut at {config.training.sequence_length} tokens"),
        (report.num_dropped_untrained, "dropped: nothing in them is trained"),
    ):
        if number:
            console.warn(f"{path}: {number:,} samples {what}")
    return rows


def _content(rows: SampleRows) -> str:
    """A hash of what the samples train."""
    digest = hashlib.sha256()
    for sample in rows.samples:
        labels = sample.labels or ()
        digest.update(np.array([len(sample.ids), *sample.ids, *sample.mask, *labels], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _model(
    start: Path, config: FinetuneConfig, tokenizer: Tokenizer, template: ChatTemplate,
    dialect: FunctionalDialect | None, added: list[str], console: Console,
) -> tuple[Decoder, Adaptation | None]:  # fmt: skip
    """The model to start from with a row for each new token: in fp32, or frozen as stored with an adapter on it."""
    model = load_model(start, dtype="float32" if config.adapter is None else None)
    if config.training.sequence_length > model.config.max_position_embeddings:
        raise ConfigError(
            f"training.sequence_length is {config.training.sequence_length}, but the model {start} is meant for at "
            f"most {model.config.max_position_embeddings} tokens"
        )
    old_size = model.config.vocab_size
    add_rows(model, tokenizer, added, dialect)
    new_rows = {tokenizer.id_of(token) for token in added} | set(range(old_size, model.config.vocab_size))
    model.config = replace(model.config, eos_token_id=_stop_ids(tokenizer, template))
    if config.adapter is None:
        return model, None
    reference = str(start.resolve()) if Path(config.model).expanduser().is_dir() else config.model
    adaptation = adapt(
        model, config.adapter, tokenizer, new_rows,
        start=start, reference=reference, seed=config.seed, console=console,
    )  # fmt: skip
    return model, adaptation


def _objective(model: Decoder, config: FinetuneConfig) -> CausalLoss | NoisyLoss:
    loss = CausalLoss(model, config.training)
    return loss if config.neftune is None else NoisyLoss(loss, config.neftune)


def _merge(config: FinetuneConfig, start: Path, world: World, console: Console) -> None:
    if config.adapter is not None and world.is_main:
        merge_beside(config.output, config.adapter, start, console)


def _stop_ids(tokenizer: Tokenizer, template: ChatTemplate) -> int | tuple[int, ...] | None:
    """What ends a reply in other programs too: the template's stop tokens and the end of a document."""
    eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    ids = tuple(dict.fromkeys((*eos, *template.stop_ids(tokenizer))))
    return ids if len(ids) > 1 else next(iter(ids), None)


def _token_weights(
    config: FinetuneConfig, tokenizer: Tokenizer, dialect: FunctionalDialect | None
) -> torch.Tensor | None:
    if dialect is None or config.functional_token_weight == 1.0:
        return None
    weights = torch.ones(tokenizer.vocab_size)
    weights[[tokenizer.id_of(token) for token in dialect.tokens]] = config.functional_token_weight
    return weights
