"""Sampling: do two forms choose tokens by the same settings, where a caller says nothing?

generation_config.json travels beside the weights, and everything served follows it: temperature, filters, penalty,
length. No logit shows that it was lost. A GGUF file and a server have none that could be read. Settings that only other
programs follow (`suppress_tokens`, a temperature without `do_sample`) are compared as they stand in the files.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from leveret.certify.findings import Check
from leveret.certify.form import Form
from leveret.weights.safetensors import read_json

APART = ("stop_ids",)
"""What another check looks at (stops.py)."""


READ = ("eos_token_id", "bos_token_id", "pad_token_id", "max_new_tokens", "repetition_penalty", "do_sample",
        "transformers_version")  # fmt: skip
"""Keys of the file that another check or `SamplingParams` has, or that say nothing of sampling."""

SAMPLED = ("temperature", "top_k", "top_p", "min_p")
"""Keys that `SamplingParams` has where the model samples."""


def compare_sampling(first: Form, second: Form) -> Check:
    """The check; not compared where a form has no settings of its own."""
    ours, theirs = first.sampling, second.sampling
    if ours is None or theirs is None:
        return Check(name="sampling", measured="one form says nothing of it", bound="-", verdict="not compared")
    names = [field.name for field in fields(ours) if field.name not in APART]
    apart = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    told = [f"{name} {getattr(ours, name)}, and the second {getattr(theirs, name)}" for name in apart]
    mine, other = _unread(first), _unread(second)
    if mine is not None and other is not None:
        apart = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
        told += [f"{name} {mine.get(name)}, and the second {other.get(name)}" for name in apart]
    if not told:
        return Check(name="sampling", measured="the same settings", bound="equal", verdict="same")
    return Check(name="sampling", measured="; ".join(told), bound="equal", verdict="different")


def _unread(form: Form) -> dict[str, Any] | None:
    """What its generation_config.json says beside the settings that are read here; None where it has none."""
    file = form.path / "generation_config.json"
    if not file.is_file():
        return None
    values = read_json(file)
    read = {*READ, *(SAMPLED if values.get("do_sample") else ())}
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in read and not name.startswith("_")
    }
