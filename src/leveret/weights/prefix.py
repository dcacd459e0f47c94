"""A prefix in peft's layout: one tensor `prompt_embeddings` (tokens, layers * 2 * width), keys and values in turn.

layer 0 keys | layer 0 values | layer 1 keys | ...        width = key-value heads * head width
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from leveret.errors import CorruptedFile, MissingWeights, ShapeMismatch
from leveret.model.decoder import Decoder
from leveret.model.prefix import prefixes_of, put_prefix
from leveret.weights.adapter_layout import CONFIG
from leveret.weights.safetensors import read_json

KIND = "PREFIX_TUNING"
TENSOR = "prompt_embeddings"


def prefix_files(model: Decoder, base: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors and the config of a model's prefix."""
    prefixes = prefixes_of(model)
    config = model.config
    values: dict[str, Any] = {
        "peft_type": KIND,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": len(prefixes[0]),
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_key_value_heads,
        "token_dim": config.num_key_value_heads * config.head_dim,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": config.num_key_value_heads * config.head_dim,
        "prefix_projection": False,
        "inference_mode": True,
    }
    whole = torch.cat(prefixes, dim=1).to("cpu").contiguous()
    return {TENSOR: whole}, json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def is_prefix(folder: Path) -> bool:
    """Whether an adapter's folder holds a prefix."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("peft_type") == KIND


@torch.no_grad()
def load_prefix(model: Decoder, file: Path, *, dtype: torch.dtype) -> None:
    """Put the prefix of a tensor file before `model`, in place."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CorruptedFile(f"{file} cannot be read: {error}", hint="fetch it again") from error
    if set(tensors) != {TENSOR}:
        raise MissingWeights(f"{file} must hold {TENSOR} and nothing else; it holds {', '.join(sorted(tensors))}",
                             hint="save the adapter with peft again")  # fmt: skip
    layers, width = model.config.num_hidden_layers, model.config.num_key_value_heads * model.config.head_dim
    whole = tensors[TENSOR]
    if whole.ndim != 2 or whole.shape[1] != 2 * layers * width:
        raise ShapeMismatch(
            f"{TENSOR} in {file} has shape {tuple(whole.shape)}, (tokens, {2 * layers * width}) is expected",
            hint="it must have been trained on this model",
        )
    put_prefix(model, [part.contiguous().to(model.norm.weight.device, dtype) for part in whole.chunk(layers, dim=1)])
    model.requires_grad_(False)
