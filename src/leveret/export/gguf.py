"""A GGUF file of a model, and of an adapter: written here, or for the K types by llama.cpp's own quantizer.

Types that the `gguf` package rounds to are written at once. For the others the model is written whole, in the type it
has, and the quantizer (in llama-cpp-python) makes the file of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from leveret.chat.template import ChatTemplate
from leveret.console import Console
from leveret.errors import WeightsError
from leveret.export.config import GgufType
from leveret.extras import require
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf import GgufReport, write_gguf
from leveret.weights.gguf_layout import FILE_TYPES
from leveret.weights.gguf_read import CARRIED_FILES
from leveret.weights.gguf_tokenizer import tokenizer_keys
from leveret.weights.load import read_config
from leveret.weights.reader import WeightReader


def write_model(
    source: Path,
    target: Path,
    kind: GgufType,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    name: str,
    console: Console,
) -> GgufReport:
    """Write the model of a directory as `target`; MissingExtra, before anything is written, for want of a quantizer."""
    made_here = kind in FILE_TYPES
    if not made_here:
        _quantizer(kind)
    keys = tokenizer_keys(
        tokenizer,
        read_config(source),
        stop_ids=() if template is None else template.stop_ids(tokenizer),
        add_bos=adds_bos(tokenizer),
    )
    first: Any = kind if made_here else _whole_type(source)
    whole = target if made_here else target.with_name("whole.gguf")
    carried = {item: (source / item).read_text("utf-8") for item in CARRIED_FILES if (source / item).is_file()}
    with console.progress(f"write {first}", None, "tensor") as progress:
        report = write_gguf(
            source, whole, first, keys, name=name, carried=carried, progress=lambda done, _: progress.update(done)
        )
    if not made_here:
        _quantize(whole, target, kind)
        whole.unlink()
    return report


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's files say that a text begins with BOS: their post-processor then adds it."""
    if tokenizer.bos_id is None:
        return False
    engine = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return bool(engine.encode("", add_special_tokens=True).ids[:1] == [tokenizer.bos_id])


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
