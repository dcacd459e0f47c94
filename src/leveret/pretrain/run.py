"""Train a model on text: shards, rows, X-ray, steps, validation, a model folder.

Text is tokenized once into `output/shards` (reused while nothing changes), laid end to end and cut into rows whose
documents cannot see each other. Held-out text that also stands in the training data is refused, as its loss would say
nothing. Killed at any moment, the same command goes on and ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from leveret.commands import StageResult
from leveret.console import Console
from leveret.data.examples import Document
from leveret.data.excluding import Exclusions
from leveret.data.files import ReadReport, refuse_output_within
from leveret.data.leaks import refuse_leaks
from leveret.data.mixture import Mixture
from leveret.data.packing import Sample, stream_rows
from leveret.data.readers import read_documents
from leveret.data.shards import TokenShards, build_shards
from leveret.errors import DataError
from leveret.hub import resolve_whole_model
from leveret.model.config import ModelConfig
from leveret.model.count import count
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.pretrain.config import ModelShape, PretrainConfig
from leveret.pretrain.origins import Origins
from leveret.tokenizer.files import Tokenizer
from leveret.trainer import xray
from leveret.trainer.batches import BatchSource
from leveret.trainer.claim import claimed
from leveret.trainer.loop import Run, checkpoints_of, train
from leveret.trainer.objective import CausalLoss
from leveret.trainer.outcome import MODEL, finished_figures, model_fingerprint, publish
from leveret.trainer.start import check_start, load_start
from leveret.trainer.validation import Validation
from leveret.trainer.world import World, joined
from leveret.weights.load import read_config

_XRAY_DOCUMENTS = 8
_XRAY_TOKENS = 1000  # of a longer document, its end, where the stop token is


def run(config: PretrainConfig, console: Console) -> StageResult:
    """Train as `config` says; `output/model` is the result. Resumes, or finds that all is done."""
    refuse_output_within([*(source.path for source in config.documents), *config.validation], config.output)
    with joined(config.training) as world, claimed(config.output, world, console):
        return _run(config, world, console)


def _run(config: PretrainConfig, world: World, console: Console) -> StageResult:
    start = None if config.init_from is None else resolve_whole_model(config.init_from, purpose="pretraining")
    if start is not None:
        check_start(start, config.output, config.training)
    tokenizer = _tokenizer(config, start)
    weights = [source.weight for source in config.documents]
    excluded, none = Exclusions.of(config.exclude_rows), Exclusions([])
    with world.main_first():  # the others find the shards
        texts = [
            _shards(source.path, f"train-{i}", tokenizer, config, console, excluded)
            for i, source in enumerate(config.documents)
        ]
        held_out = [
            _shards(path, f"validation-{i}", tokenizer, config, console, none)
            for i, path in enumerate(config.validation)
        ]
    streams = [stream_rows(shards, config.training.sequence_length) for shards in texts]
    rows = [excluded.without_rows(stream) for stream in streams]
    excluded.refuse_unknown()
    identity = {
        "model": config.model.model_dump(mode="json") if start is None else model_fingerprint(start),
        "tokenizer": tokenizer.fingerprint,
        "documents": [{"content": shards.fingerprint, "weight": w} for shards, w in zip(texts, weights, strict=True)],
        "training": config.training.identity(),
        "seed": config.seed,
    } | ({"excluded_rows": excluded.rows} if excluded.rows else {})
    if config.training.validation_decides:
        identity["validation"] = [shards.fingerprint for shards in held_out]
    if (done := finished_figures(config.output, identity, console, world, training=config.training)) is not None:
        console.info(f"{config.output / MODEL} is there already, trained with these settings")
        return StageResult(output=config.output, summary=done)
    refuse_leaks(
        "documents",
        held_out=_contents("validation document", held_out),
        trained=_contents("training document", texts),
    )
    model = _model(config, start, tokenizer)
    mixture = Mixture(list(zip(rows, weights, strict=True)), seed=config.seed)
    source = BatchSource(mixture, config.training, rows_in_one_epoch=len(mixture))
    _introduce(model, texts, source, config, tokenizer, world, console, excluded.rows)
    validation_rows = [stream_rows(shards, config.training.sequence_length) for shards in held_out]
    training = Run(
        config=config.training,
        source=source,
        objective=CausalLoss(model, config.training),
        folder=config.output,
        identity=identity,
        seed=config.seed,
        title="pretrain",
        tokenizer=tokenizer,
        world=world,
        origins=Origins(
            [
                (stream, partial(_documents, source.path, excluded, ReadReport()))
                for stream, source in zip(streams, config.documents, strict=True)
            ]
        ),
        validate=Validation(model, validation_rows, config.training, tokenizer, world) if held_out else None,
    )
    summary = train(model, training, console).as_dict()
    checkpoints = checkpoints_of(config.output, identity, config.training, console, world)
    folder = publish(
        model,
        tokenizer,
        config.output,
        checkpoints=checkpoints,
        figures=summary,
        keep_final_checkpoint=config.training.keep_final_checkpoint,
        keep_best=config.training.keep_best,
        start=start,
    )
    console.info(f"saved {folder}")
    return StageResult(output=config.output, summary=summary)


def model_config(shape: ModelShape, tokenizer: Tokenizer) -> ModelConfig:
    """The whole description of a fresh model: its shape, and what the tokenizer says."""
    return shape.decoder_config(
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )


def _contents(what: str, sources: list[TokenShards]) -> Iterator[tuple[str, bytes]]:
    for shards in sources:
        for i in range(shards.num_documents):
            yield f"{what} {i} (counted from 0)", shards.document(i).tobytes()


def _documents(path: Path, excluded: Exclusions, report: ReadReport) -> Iterator[Document]:
    return excluded.without(read_documents(path, report), lambda document: document.source, report)


def _shards(
    path: Path, name: str, tokenizer: Tokenizer, config: PretrainConfig, console: Console, excluded: Exclusions
) -> TokenShards:
    report = ReadReport()
    with console.progress(f"tokenize {path.name}", total=None, unit="documents") as progress:
        shards = build_shards(
            _documents(path, excluded, report),
            tokenizer,
            config.output / "shards" / name,
            source=path,
            on_progress=lambda documents, tokens: progress.update(documents, tokens=tokens),
        )
    for line in report.lines():
        console.info(f"{path}: {line}")
    return shards


def _tokenizer(config: PretrainConfig, start: Path | None) -> Tokenizer:
    """The one that is named, or else that of the model to start from, whose rows were learnt for its ids."""
    tokenizer = Tokenizer.load(config.tokenizer or start or "")
    if start is None:
        return tokenizer
    hint = "use the tokenizer that belongs to the model (leave `tokenizer` out)"
    rows = read_config(start).vocab_size
    if rows < tokenizer.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model {start} has {rows} rows",
            hint=f"{hint}, or give the model more rows first: leveret.weights.tokens.resize_tokens",
        )
    if (start / "tokenizer.json").is_file():
        own = Tokenizer.load(start).ids
        moved = sorted(own.items() - tokenizer.ids.items(), key=lambda item: item[1])
        if moved:
            token, index = moved[0]
            raise DataError(
                f"{len(moved)} of the {len(own)} tokens of the model {start} have other ids in the tokenizer "
                f"{config.tokenizer}, first {token!r}: {index} there, {tokenizer.ids.get(token, 'none')} here",
                hint=hint,
            )
    return tokenizer


def _model(config: PretrainConfig, start: Path | None, tokenizer: Tokenizer) -> Decoder:
    """Fresh or loaded, in fp32: the trainer rounds it to the precision it works in."""
    if start is not None:
        return load_start(start, dtype="float32")
    model = Decoder(model_config(config.model, tokenizer))
    init_weights(model, config.seed, attention=config.model.attention_init)
    return model


def _introduce(
    model: Decoder, texts: list[TokenShards], source: BatchSource, config: PretrainConfig, tokenizer: Tokenizer,
    world: World, console: Console, left_out: list[str],
) -> None:  # fmt: skip
    """Say what will be trained on what, and show it token by token."""
    size = count(model.config)
    tokens: dict[str, Any] = {"documents": 0, "tokens": 0}
    samples = {}
    for shards, data in zip(texts, config.documents, strict=True):
        tokens["documents"] += shards.num_documents
        tokens["tokens"] += shards.num_tokens
        shown = range(min(_XRAY_DOCUMENTS, shards.num_documents))
        documents = [shards.document(i)[-_XRAY_TOKENS:].tolist() for i in shown]
        samples[f"{data.path} (first documents)"] = [
            Sample(ids=ids, mask=[True] * len(ids), key=f"document {i}") for i, ids in enumerate(documents)
        ]
    console.info(
        f"{size.total / 1e6:,.1f} M parameters; {tokens['documents']:,} documents, {tokens['tokens']:,} tokens; "
        f"{source.total_steps:,} steps of {config.training.rows_per_step * config.training.sequence_length:,} tokens"
    )
    if left_out:
        console.info(f"left out {len(left_out):,} rows: named in exclude_rows")
    stops = [tokenizer.special_tokens["eos_token"]]
    labels = xray.examine(samples, tokenizer=tokenizer, stops=stops)
    if world.is_main:
        xray.show(labels, tokenizer=tokenizer, console=console, page=config.output / "xray.html")
