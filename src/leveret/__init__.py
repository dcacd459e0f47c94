"""Leveret: the whole life of an open language model in one package.

import leveret

model = leveret.load("runs/phone")
print(model.generate("Once upon a time", max_tokens=40))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from leveret.engine.config import EngineConfig
    from leveret.engine.text import TextModel

__all__ = ["load"]


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    adapter: str | Path | None = None,
    quantize: str | None = None,
    backend: str = "leveret",
    engine: EngineConfig | Mapping[str, Any] | None = None,
) -> TextModel:
    """Load a model directory, or a model of the Hugging Face hub by name, to generate, chat and call tools.

    Args:
        path: the directory or the name.
        dtype: type of the weights in memory ("float32", torch.bfloat16 ...); None as stored.
        device: "cpu", "cuda:0" ...
        adapter: a folder with an adapter for this model. As `path`, such a folder brings the model it names.
        quantize: "int8", "int4" or "nf4" to keep the matrices in that many bits; None as stored.
        backend: who runs it: "leveret", "transformers", "llama.cpp" (path: a GGUF file), or the URL of a server.
        engine: how our own engine works: its cache, speculation and the like; a `leveret.engine.config.EngineConfig`,
            or keys of one with values.
    """
    # Imported here because it brings torch, which `import leveret` must not cost.
    from leveret.engine.text import TextModel

    return TextModel.load(
        path, dtype=dtype, device=device, adapter=adapter, quantize=quantize, backend=backend, engine=engine
    )
