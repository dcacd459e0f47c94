"""Sampling: do two forms choose tokens by the same settings, where a caller says nothing?

generation_config.json travels beside the weights, and everything served follows it: temperature, filters, penalty,
length. No logit shows that it was lost. A GGUF file and a server have none that could be read.
"""

from __future__ import annotations

from dataclasses import fields

from leveret.certify.findings import Check
from leveret.certify.form import Form

APART = ("stop_ids",)
"""What another check looks at (stops.py)."""


def compare_sampling(first: Form, second: Form) -> Check:
    """The check; not compared where a form has no settings of its own."""
    ours, theirs = first.sampling, second.sampling
    if ours is None or theirs is None:
        return Check(name="sampling", measured="one form says nothing of it", bound="-", verdict="not compared")
    names = [field.name for field in fields(ours) if field.name not in APART]
    apart = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    if not apart:
        return Check(name="sampling", measured="the same settings", bound="equal", verdict="same")
    measured = "; ".join(f"{name} {getattr(ours, name)}, and the second {getattr(theirs, name)}" for name in apart)
    return Check(name="sampling", measured=measured, bound="equal", verdict="different")
