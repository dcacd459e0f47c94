"""`leveret export`: a model or an adapter in, what another program loads out, with its command lines and a card.

    gguf        a .gguf with Ollama's Modelfile and run.sh; of an adapter its own .gguf, for `--lora`
    directory   what transformers, vLLM and text-generation-webui load, mended and checked
    mlc         the configs from which MLC-LLM makes 4-bit weights and an app, with a forecast of their size

Nothing is uploaded: the commands are printed.
"""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.chat.template import ChatTemplate, template_for
from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.defaults import read_defaults
from leveret.errors import TemplateError
from leveret.export.card import Exported, write_cards
from leveret.export.commands import llama_cpp_lines, ollama_line, script, upload_lines
from leveret.export.config import WHOLE_TYPES, ExportConfig, GgufType
from leveret.export.directory import write_directory
from leveret.export.gguf import adds_bos, write_model
from leveret.export.mlc import write_mlc
from leveret.export.ollama import Pieces, go_template, learn_pieces, modelfile, ollama_sampling
from leveret.hub import is_adapter, model_under, name_of, resolve_model
from leveret.paths import atomic_directory, atomic_write, require_outside
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf_adapter import unsayable, write_gguf_adapter
from leveret.weights.gguf_metadata import context_length
from leveret.weights.load import read_config
from leveret.weights.merged import merge_into_model


def run(config: ExportConfig, console: Console) -> StageResult:
    """Write what was asked for; returns its kind and size."""
    source = resolve_model(config.model)
    require_outside(config.output, source, model_under(source))
    name = config.name or name_of(source)
    with atomic_directory(config.output) as draft:
        if is_adapter(source) and _goes_apart(config, source, console):
            made = _adapter(source, draft, name, console)
        else:
            with _whole_model(source, console) as whole:
                made = _WRITERS[config.to](config, whole, draft, name, console)
        write_cards(made, draft, source, config.card)
    console.print(f"{config.output}: {made.told}")
    for line in upload_lines(config.output, config.repository):
        console.info(f"to upload it: {line}")
    return StageResult(output=config.output, summary={"to": config.to, **made.summary})


def _goes_apart(config: ExportConfig, adapter: Path, console: Console) -> bool:
    """Whether the adapter gets a file of its own."""
    if config.to != "gguf" or config.adapter == "merged":
        return False
    left_out = unsayable(adapter)
    if config.adapter == "apart" or left_out is None:
        return True
    console.warn(f"{adapter} has {left_out}, which a GGUF adapter cannot say; it is merged into the model")
    return False


@contextlib.contextmanager
def _whole_model(source: Path, console: Console) -> Iterator[Path]:
    """The model's own folder; for an adapter a merged one, which is removed afterwards."""
    if not is_adapter(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="leveret-merged-") as place:
        report = merge_into_model(source, Path(place) / source.name)
        console.info(report.line())
        yield Path(place) / source.name


def _adapter(source: Path, draft: Path, name: str, console: Console) -> Exported:
    file = f"{name}-lora.gguf"
    base = model_under(source)
    count = write_gguf_adapter(source, read_config(base), draft / file, name=name)
    commands = {"chat": f"llama-cli -m MODEL.gguf --lora {shlex.quote(file)} --jinja -cnv"}
    atomic_write(draft / "run.sh", script(commands))
    console.info(f"the model under it: leveret export {base} output=...")
    size = (draft / file).stat().st_size
    return Exported(
        program="llama.cpp",
        files={file: size},
        commands=commands,
        told=f"{file}, {size / 1e6:,.1f} MB, changes {count} matrices of any GGUF file of {base.name}",
        summary={"type": "f32", "bytes": size, "matrices": count, "adapter": "apart"},
    )


def _gguf(config: ExportConfig, source: Path, draft: Path, name: str, console: Console) -> Exported:
    kind: GgufType = config.type or "bf16"
    talk = Talk.of(source, console)
    file = f"{name}-{kind}.gguf"
    report = write_model(source, draft / file, kind, talk.tokenizer, talk.template, name=name, console=console)
    size = (draft / file).stat().st_size
    commands = talk.commands(file, context_length(read_config(source)))
    if talk.template is None or talk.pieces is not None:
        atomic_write(draft / "Modelfile", _modelfile(source, file, talk))
        commands["ollama"] = ollama_line(file)
    atomic_write(draft / "run.sh", script(commands))
    for notice in report.notices:
        console.warn(notice)
    if report.fallbacks:
        console.warn(f"{report.fallbacks} matrices are in float16: their rows are no whole number of blocks of 32")
    return Exported(
        program="llama.cpp, Ollama",
        files={file: size},
        commands=commands,
        told=f"{file}, {size / 1e6:,.1f} MB, {report.tensors} tensors, text is cut by llama.cpp's rule "
        f"{report.rule.name!r}, which gives this tokenizer's ids",
        summary={"type": kind, "bytes": size, "tensors": report.tensors, "pre_tokenizer": report.rule.name},
    )


def _directory(config: ExportConfig, source: Path, draft: Path, name: str, console: Console) -> Exported:
    dtype = None if config.type is None else WHOLE_TYPES[config.type]
    with console.progress("write tensors", None, "tensor") as progress:
        report = write_directory(source, draft, dtype=dtype, progress=lambda done, _: progress.update(done))
    for line in report.mended:
        console.info(f"mended: {line}")
    rows = [(finding.name, "ok" if finding.passed else "NO", finding.said) for finding in report.findings]
    console.table("checks", ("check", "", "found"), rows)
    for finding in report.findings:
        if not finding.passed:
            console.warn(f"{finding.name}: {finding.said}")
    failed = sum(not finding.passed for finding in report.findings)
    place = config.output
    loads = f"from transformers import pipeline; pipeline('text-generation', {str(place)!r})"
    return Exported(
        program="transformers, vLLM, text-generation-webui",
        files={file.name: file.stat().st_size for file in sorted(draft.glob("*.safetensors"))},
        commands={
            "transformers": f"python -c {shlex.quote(loads)}",
            "vLLM": f"vllm serve {shlex.quote(str(place))} --served-model-name {shlex.quote(name)}",
            "text-generation-webui": f"python server.py --model-dir {shlex.quote(str(place.parent))} "
            f"--model {shlex.quote(place.name)} --api",
        },
        told=f"{report.bytes / 1e6:,.1f} MB, {len(report.findings) - failed} of {len(report.findings)} checks passed",
        summary={"bytes": report.bytes, "checks": len(report.findings), "failed": failed},
    )


def _mlc(config: ExportConfig, source: Path, draft: Path, name: str, console: Console) -> Exported:
    talk = Talk.of(source, console)
    forecast = write_mlc(config, source, draft, name, talk.tokenizer, talk.template, talk.pieces)
    for note in forecast.notes:
        console.warn(note)
    return Exported(
        program="MLC-LLM",
        files={f"{name}-{config.mlc_type}-MLC (forecast)": forecast.weight_bytes},
        commands=forecast.commands,
        told=f"{forecast.weight_bytes / 1e6:,.1f} MB of weights in {config.mlc_type}, about "
        f"{forecast.running_bytes / 1e6:,.1f} MB while it runs, with {forecast.context:,} tokens",
        summary={"bytes": forecast.weight_bytes, "running_bytes": forecast.running_bytes, "type": config.mlc_type},
    )


_WRITERS: dict[str, Any] = {"gguf": _gguf, "directory": _directory, "mlc": _mlc}


@dataclass(frozen=True, kw_only=True)
class Talk:
    """How a model is talked to: its tokenizer, its template, and the pieces that the template is made of."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    pieces: Pieces | None

    @classmethod
    def of(cls, source: Path, console: Console) -> Talk:
        """Read from a model directory; says so where a template is more than pieces."""
        tokenizer = Tokenizer.load(source)
        template = None if tokenizer.chat_template is None else template_for(tokenizer)
        pieces = None
        if template is not None:
            try:
                pieces = learn_pieces(template, tokenizer.special_tokens)
            except TemplateError as error:
                console.warn(
                    f"Ollama, MLC-LLM and an old llama.cpp could not write conversations right: {error.message}"
                )
        return cls(tokenizer=tokenizer, template=template, pieces=pieces)

    def commands(self, file: str, context: int) -> dict[str, str]:
        """llama.cpp's lines for a file."""
        begins = "" if self.pieces is None else self.pieces.between.get(("", "user"), "")
        bos = self.tokenizer.special_tokens.get("bos_token")
        writes_bos = bos is not None and begins.startswith(bos)
        return llama_cpp_lines(
            file,
            context,
            pieces=self.pieces,
            stops=() if self.template is None else self.template.stops,
            has_template=self.template is not None,
            drop_bos=adds_bos(self.tokenizer) and self.pieces is not None and not writes_bos,
        )


def _modelfile(source: Path, file: str, talk: Talk) -> str:
    parameters = ollama_sampling(read_defaults(source)) | {"num_ctx": context_length(read_config(source))}
    stops = () if talk.template is None else talk.template.stops
    return modelfile(file, None if talk.pieces is None else go_template(talk.pieces), stops, parameters)
