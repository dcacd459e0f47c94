"""`leveret export`: a model directory in, a .gguf with Modelfile and command lines out.

Types that the `gguf` package rounds to are written at once. For the K types the model is written whole, in the type it
has, and llama.cpp's own quantizer (in llama-cpp-python) makes the file of it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import tokenizers

from leveret.chat.template import ChatTemplate
from leveret.commands import StageResult
from leveret.console import Console
from leveret.errors import TemplateError, WeightsError
from leveret.export.config import ExportConfig
from leveret.export.ollama import go_template, learn_pieces, modelfile
from leveret.extras import require
from leveret.hub import resolve_whole_model
from leveret.paths import atomic_directory, atomic_write
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf import GgufReport, write_gguf
from leveret.weights.gguf_layout import FILE_TYPES
from leveret.weights.gguf_metadata import context_length
from leveret.weights.gguf_read import CARRIED_FILES
from leveret.weights.gguf_tokenizer import tokenizer_keys
from leveret.weights.load import read_config
from leveret.weights.reader import WeightReader
from leveret.weights.safetensors import read_json

SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
"""Keys of generation_config.json, and Ollama's names for them."""


def run(config: ExportConfig, console: Console) -> StageResult:
    """Write what was asked for; returns type, size and the tokenizer's rule."""
    source = resolve_whole_model(config.model, purpose="exporting")
    tokenizer = Tokenizer.load(source)
    template = None if tokenizer.chat_template is None else ChatTemplate(tokenizer.chat_template)
    name = config.name or source.resolve().name
    file = f"{name}-{config.type}.gguf"
    with atomic_directory(config.output) as draft:
        report = _write(config, source, draft / file, tokenizer, template, name, console)
        size = (draft / file).stat().st_size
        _write_modelfile(source, draft, file, tokenizer, template, console)
        atomic_write(
            draft / "run.sh",
            _commands(
                file, context_length(read_config(source)), template, has_modelfile=(draft / "Modelfile").is_file()
            ),
        )
    for notice in report.notices:
        console.warn(notice)
    if report.fallbacks:
        console.warn(f"{report.fallbacks} matrices are in float16: their rows are no whole number of blocks of 32")
    console.print(
        f"{config.output / file}: {size / 1e6:,.1f} MB, {report.tensors} tensors, text is cut by llama.cpp's rule "
        f"{report.rule.name!r}, which gives this tokenizer's ids"
    )
    return StageResult(
        output=config.output,
        summary={"type": config.type, "bytes": size, "tensors": report.tensors, "pre_tokenizer": report.rule.name},
    )


def _write(
    config: ExportConfig,
    source: Path,
    target: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    name: str,
    console: Console,
) -> GgufReport:
    made_here = config.type in FILE_TYPES
    if not made_here:
        _quantizer(config.type)  # before anything is written
    keys = tokenizer_keys(
        tokenizer,
        read_config(source),
        stop_ids=() if template is None else template.stop_ids(tokenizer),
        add_bos=_adds_bos(tokenizer),
    )
    kind: Any = config.type if made_here else _whole_type(source)
    whole = target if made_here else target.with_name("whole.gguf")
    carried = {item: (source / item).read_text("utf-8") for item in CARRIED_FILES if (source / item).is_file()}
    with console.progress(f"write {kind}", None, "tensor") as progress:
        report = write_gguf(
            source, whole, kind, keys, name=name, carried=carried, progress=lambda done, _: progress.update(done)
        )
    if not made_here:
        _quantize(whole, target, config.type)
        whole.unlink()
    return report


def _quantizer(kind: str) -> Any:
    purpose = f"type={kind} (made by llama.cpp; {', '.join(FILE_TYPES)} need it not)"
    return require("llama_cpp", extra="llama-cpp", purpose=purpose)


def _quantize(source: Path, target: Path, kind: str) -> None:
    library = _quantizer(kind)
    options = library.llama_model_quantize_default_params()
    options.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    code = library.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if code != 0 or not target.is_file():
        raise WeightsError(f"llama.cpp could not quantize to {kind} (code {code})",
                           hint="its reason stands above; q8_0 and q4_0 are made without it")  # fmt: skip


def _whole_type(source: Path) -> str:
    """The type in which nothing is lost."""
    with WeightReader(source) as reader:
        kinds = {str(stored.dtype).removeprefix("torch.") for stored in reader.tensors.values()}
    return {"bfloat16": "bf16", "float16": "f16"}.get(next(iter(kinds)), "f32") if len(kinds) == 1 else "f32"


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's files say that a text begins with BOS: their post-processor then adds it."""
    if tokenizer.bos_id is None:
        return False
    engine = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return bool(engine.encode("", add_special_tokens=True).ids[:1] == [tokenizer.bos_id])


def _write_modelfile(
    source: Path, draft: Path, file: str, tokenizer: Tokenizer, template: ChatTemplate | None, console: Console
) -> None:
    said = read_json(source / "generation_config.json") if (source / "generation_config.json").is_file() else {}
    parameters = {theirs: said[ours] for ours, theirs in SAMPLING.items() if said.get(ours) is not None}
    parameters["num_ctx"] = context_length(read_config(source))
    learnt = None
    if template is not None:
        try:
            learnt = go_template(learn_pieces(template, tokenizer.special_tokens))
        except TemplateError as error:
            console.warn(f"no Modelfile is written, as Ollama could not write conversations right: {error.message}")
            return
    stops = () if template is None else template.stops
    atomic_write(draft / "Modelfile", modelfile(file, learnt, stops, parameters))


def _commands(file: str, context: int, template: ChatTemplate | None, *, has_modelfile: bool) -> str:
    """Command lines for llama.cpp and Ollama. The file's own template is used (--jinja), so no prefix can be wrong."""
    path = shlex.quote(file)
    chat = [f"llama-cli -m {path} -c {context} --jinja -cnv", f"llama-server -m {path} -c {context} --jinja"]
    plain = [f"llama-cli -m {path} -c {context} -no-cnv -n 128 -p 'Once upon a time'"]
    name = shlex.quote(Path(file).stem.lower())
    ollama = f"ollama create {name} -f Modelfile && ollama run {name}"
    choices = [*(plain if template is None else chat), *([ollama] if has_modelfile else [])]
    return (
        "#!/bin/sh\n# The first line is run; the others are other ways, in this folder.\n" + "\n# ".join(choices) + "\n"
    )
