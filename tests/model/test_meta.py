"""Modules without numbers: made fast, with the right shapes, and nothing is drawn for them."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.meta import shapes_only

SIZES = {
    "family": "mistral", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
CONFIG = ModelConfig(**SIZES)


def test_shapes_are_those_of_the_model_and_no_random_number_is_taken():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with shapes_only():
        empty = Decoder(CONFIG)
    assert torch.equal(torch.rand(1), expected)
    assert {tensor.device.type for tensor in empty.parameters()} == {"meta"}
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in Decoder(CONFIG).state_dict().items()}


def test_outside_layers_are_initialized_again():
    with shapes_only():
        pass
    layer = nn.Linear(16, 16)
    assert layer.weight.device.type == "cpu" and layer.weight.std() > 0
    assert nn.init.constant_(layer.weight, 2.0).eq(2.0).all()


def test_making_a_model_without_memory_does_not_load_the_tracer_of_pytorch():
    code = f"""
import sys
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.meta import shapes_only
before = "torch._dynamo" in sys.modules
with shapes_only():
    Decoder(ModelConfig(**{SIZES}))
print(before, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
