"""`leveret generate`: continue one text and print the continuation as it comes."""

from __future__ import annotations

from leveret.cli.generate_config import GenerateConfig
from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.text import TextModel
from leveret.paths import atomic_write


def run(config: GenerateConfig, console: Console) -> StageResult:
    """Print the continuation on the standard output; nothing else goes there."""
    model = TextModel.load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        adapter=config.adapter,
        quantize=config.quantize,
        backend=config.backend,
        engine=config.engine,
    )
    pieces = []
    for piece in model.stream(config.prompt, **config.options(), **config.form()):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print(flush=True)
    text = "".join(pieces)
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        atomic_write(config.output / "generated.txt", text)
    return StageResult(output=config.output, summary={"characters": len(text)})
