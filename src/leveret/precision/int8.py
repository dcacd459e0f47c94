"""Int8Linear: a Linear whose weight is stored in eight bits, in groups, in the GPTQ layout.

256 levels a weight: the loss is near half a percent of a weight's magnitude, at half the size of bfloat16 (which itself
loses a sixth of a percent).
"""

from __future__ import annotations

from leveret.precision.linear import QuantizedLinear


class Int8Linear(QuantizedLinear):
    """Weight-only int8; made by `Int8Linear.from_linear` or filled from a GPTQ file."""

    bits = 8
