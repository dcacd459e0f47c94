"""Aquila2: Llama under another name, with RMSNorm's last rounding after the multiplication by its weight.

Released configs of the 34B-16K model carry `rope_scaling` twice; as in JSON everywhere the last one counts, and
`weights.load.read_config` warns about it.
"""

from __future__ import annotations

from leveret.model.families.family import Family
from leveret.model.families.llama import NAMES

FAMILY = Family(
    name="aquila",
    architecture="AquilaForCausalLM",
    defaults={"rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2},
    names=NAMES,
    norm_scales_in_float32=True,
)
