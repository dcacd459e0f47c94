"""What a model can be quantized to as it is loaded (at_load.py), for configs and plans that must not import torch."""

from __future__ import annotations

from typing import Literal

InMemory = Literal["int8", "int4", "nf4"]
"""8 bits, 4 bits in groups, or the 4 bits that QLoRA trains on (at_load.py)."""

GROUP_SIZES = (32, 16, 8)
"""Of int4: the first that divides the inputs of every Linear is taken."""
