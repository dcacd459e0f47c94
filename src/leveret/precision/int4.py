"""Int4Linear: a Linear whose weight is stored in four bits, in groups, in the GPTQ layout.

Sixteen levels a weight and one float16 scale a group: 4 + 16/128 + 4/128 bits a weight at group size 128, plus the
index of groups. Rounding to nearest loses about a tenth of a normally distributed weight's magnitude at that size
(relative error, root mean square); smaller groups lose less and store more scales.
"""

from __future__ import annotations

from leveret.precision.linear import QuantizedLinear


class Int4Linear(QuantizedLinear):
    """Weight-only int4; made by `Int4Linear.from_linear` or filled from a GPTQ file."""

    bits = 4
