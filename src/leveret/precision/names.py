"""InMemory: what a model can be quantized to as it is loaded, by name, for configs that must not import torch."""

from __future__ import annotations

from typing import Literal

InMemory = Literal["int8", "int4", "nf4"]
"""8 bits, 4 bits in groups, or the 4 bits that QLoRA trains on (at_load.py)."""
