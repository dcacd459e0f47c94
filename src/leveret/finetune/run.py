"""Fine-tune a model: samples from conversations and tool requests, X-ray, steps, a model folder.

Only what the assistant says is trained, its stop token included, unless `mask` says otherwise (data/masks.py). With a
tool set, each tool becomes one token, whose row starts from the words of its name and description. Before the first
step the label X-ray shows what is trained, and refuses what cannot be right. Killed at any moment, the same command
goes on and ends with the same bits. With `adapter`, the model is frozen and a small change beside it is trained
(adapter.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from leveret.chat.template import BUILTIN_NAMES, ChatTemplate, builtin_template, template_for
from leveret.commands import StageResult
from leveret.console import Console
from leveret.data.files import refuse_output_within
from leveret.data.masks import check_fit
from leveret.data.mixture import Mixture
from leveret.errors import ConfigError, TemplateError, ToolError
from leveret.finetune.adapter import (
    ADAPTER,
    Adaptation,
    adapt,
    merge_beside,
    refuse_merging_into_quantized,
    refuse_trained_routers,
)
from leveret.finetune.config import FinetuneConfig
from leveret.finetune.neftune import NoisyLoss
from leveret.finetune.new_tokens import add_rows, add_tokens
from leveret.finetune.rows import Source, held_out_sources, refuse_trained, trained_sources
from leveret.finetune.samples import Writing
from leveret.hub import resolve_whole_model
from leveret.model.decoder import Decoder
from leveret.precision.swap import write_out_head
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
from leveret.trainer.start import check_start, load_start
from leveret.trainer.validation import Validation
from leveret.trainer.world import World, joined
from leveret.weights.save import save_model


def run(config: FinetuneConfig, console: Console) -> StageResult:
    """Fine-tune as `config` says; `output/model` is the result. Resumes, or finds that all is done."""
    refuse_output_within([*(source.path for source in config.data), *config.validation], config.output)
    with joined(config.training) as world, claimed(config.output, world, console):
        return _run(config, world, console)


def _run(config: FinetuneConfig, world: World, console: Console) -> StageResult:
    start = resolve_whole_model(config.model, purpose="fine-tuning")
    check_start(start, config.output, config.training, beside=config.adapter is not None)
    tokenizer = Tokenizer.load(start)
    template = _template(config.template, tokenizer)
    tools = None if config.tools is None else _tools(config.tools)
    added = add_tokens(tokenizer, template, tools)
    with _mistake_of("mask" if config.mask != "assistant" else "template"):
        check_fit(config.mask, tokenizer, template)
    dialect = None if tools is None else FunctionalDialect(tools, reserved=tokenizer.special_ids)
    writing = Writing(
        tokenizer=tokenizer, template=template, dialect=dialect, mask=config.mask,
        split_above=config.training.sequence_length if config.on_long == "split" else None,
    )  # fmt: skip
    if config.adapter is not None:
        refuse_merging_into_quantized(config.adapter, start)
    dropout = None if config.bpe_dropout is None else BpeDropout(tokenizer, config.bpe_dropout)
    trained = trained_sources(config, writing, console, dropout)
    held_out = held_out_sources(config, writing, console)
    identity = _identity(config, start, tokenizer, template, tools, trained, held_out)
    result = f"{MODEL}/config.json" if config.adapter is None else f"{ADAPTER}/adapter_config.json"
    done = finished_figures(config.output, identity, console, world, result=result, training=config.training)
    if done is not None:
        console.info(f"{(config.output / result).parent} is there already, trained with these settings")
        _merge(config, start, world, console)
        return StageResult(output=config.output, summary=done)
    refuse_trained(held_out, trained)
    sources = {str(data.path): source.rows.samples for source, data in zip(trained, config.data, strict=True)}
    labels = xray.examine(sources, tokenizer=tokenizer, stops=template.stops)
    if world.is_main:
        xray.show(labels, tokenizer=tokenizer, console=console, page=config.output / "xray.html")
    model, adaptation = _model(start, config, tokenizer, template, dialect, added, console)
    weighted = [(source.rows, data.weight) for source, data in zip(trained, config.data, strict=True)]
    mixture = Mixture(weighted, seed=config.seed)
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
        validate=_validation(model, held_out, config, tokenizer, world),
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
        start=start,
        add_files=more,
        name=MODEL if adaptation is None else ADAPTER,
        save=save_model if adaptation is None else adaptation.save,
    )
    console.info(f"saved {folder}")
    _merge(config, start, world, console)
    return StageResult(output=config.output, summary=summary)


def _identity(
    config: FinetuneConfig, start: Path, tokenizer: Tokenizer, template: ChatTemplate, tools: ToolSet | None,
    trained: list[Source], held_out: list[Source],
) -> dict[str, Any]:  # fmt: skip
    """What decides what is learnt, and what is published of it."""
    identity: dict[str, Any] = {
        "model": model_fingerprint(start),
        "tokenizer": tokenizer.fingerprint,
        "template": template.source,
        "tools": None if tools is None else tools.to_openai(),
        "data": [
            {"content": source.content, "weight": data.weight}
            for source, data in zip(trained, config.data, strict=True)
        ],
        "bpe_dropout": config.bpe_dropout,
        "neftune": config.neftune,
        "functional_token_weight": config.functional_token_weight,
        "training": config.training.identity(),
        "seed": config.seed,
    }
    if config.training.validation_decides:
        identity["validation"] = [source.content for source in held_out]
    if config.adapter is not None:
        identity["adapter"] = config.adapter.identity()
    return identity


def _template(name: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The template asked for: a built-in one, a file, or the model's own."""
    if name is None:
        return template_for(tokenizer)
    built_in = name in BUILTIN_NAMES
    if not built_in and not Path(name).is_file():
        raise ConfigError(f"template: there is no file {name}", hint=f"built in are {', '.join(BUILTIN_NAMES)}")
    with _mistake_of("template"):
        source = builtin_template(name).source if built_in else _source_of(name)
        return ChatTemplate(source, name=name, variables=tokenizer.special_tokens)


def _tools(file: Path) -> ToolSet:
    if not file.exists():
        raise ConfigError(f"tools: {file} does not exist", hint="name a JSON file with declarations of tools")
    with _mistake_of("tools"):
        return ToolSet.load(file)


@contextlib.contextmanager
def _mistake_of(key: str) -> Iterator[None]:
    """What is wrong with a template or a tool set was named by `key` of the config."""
    try:
        yield
    except (TemplateError, ToolError) as error:
        raise ConfigError(f"{key}: {error.message}", hint=error.hint) from error


def _source_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TemplateError(
            f"the template {file} is not UTF-8: {error.reason} at byte {error.start}", hint="convert it first"
        ) from error


def _model(
    start: Path, config: FinetuneConfig, tokenizer: Tokenizer, template: ChatTemplate,
    dialect: FunctionalDialect | None, added: list[str], console: Console,
) -> tuple[Decoder, Adaptation | None]:  # fmt: skip
    """The model to start from with a row for each new token: in fp32, or frozen as stored with an adapter on it."""
    model = load_start(start, dtype="float32" if config.adapter is None else None)
    if write_out_head(model):
        console.info(f"the head of {start} is quantized; it is written out, for the loss reads the whole of it")
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
    if config.training.freeze_router:
        refuse_trained_routers(model)
    return model, adaptation


def _validation(
    model: Decoder, held_out: list[Source], config: FinetuneConfig, tokenizer: Tokenizer, world: World
) -> Validation | None:
    rows = [source.rows for source in held_out]
    return Validation(model, rows, config.training, tokenizer, world) if rows else None


def _objective(model: Decoder, config: FinetuneConfig) -> CausalLoss | NoisyLoss:
    loss = CausalLoss(model, config.training)
    return loss if config.neftune is None else NoisyLoss(loss, config.neftune)


def _merge(config: FinetuneConfig, start: Path, world: World, console: Console) -> None:
    if not world.is_main:
        return
    if config.adapter is not None:
        merge_beside(config.output, config.adapter, start, console)
    elif (config.output / ADAPTER).is_dir():
        console.warn(f"{config.output / ADAPTER} is of another run than {config.output / MODEL}; remove it")


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
