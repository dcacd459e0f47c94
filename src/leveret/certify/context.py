"""Context: are two forms meant for texts of the same length?

The texts of a comparison are short, so a form that is meant for fewer tokens answers all of them alike and refuses, or
forgets the beginning of, the long ones that the first reads. A GGUF file may rightly say another number than the folder
it was made of (`gguf_metadata.context_length`): llama.cpp has no sliding window, and counts a stretched RoPE in.
"""

from __future__ import annotations

from leveret.certify.by_llama_cpp import MOST_CONTEXT
from leveret.certify.findings import Check, verdict
from leveret.certify.form import Form
from leveret.model.decoder import Decoder
from leveret.weights.gguf_metadata import context_length


def compare_context(first: Form, second: Form) -> Check:
    """The check. llama.cpp is set up for MOST_CONTEXT tokens at most, so beside it only that much is compared."""
    runs_there = "llama.cpp" in (first.reader, second.reader)
    most = MOST_CONTEXT if runs_there else max(first.context_tokens, second.context_tokens)
    told = [min(form.context_tokens, most) for form in (first, second)]
    beyond = " or more" if runs_there and told[0] == most else ""
    if told[0] == told[1]:
        return Check(name="context", measured=f"both {told[0]:,} tokens{beyond}", bound="equal", verdict="same")
    measured = f"{first.context_tokens:,} tokens, and the second {second.context_tokens:,}"
    if _is_file(first) == _is_file(second):
        return Check(name="context", measured=measured, bound="equal", verdict=verdict(False))
    folder, file = (second, first) if _is_file(first) else (first, second)
    if not isinstance(folder.model, Decoder):
        return Check(name="context", measured=measured, bound="-", verdict="reported")
    wanted = min(context_length(folder.model.config), most)
    holds = min(file.context_tokens, most) == wanted
    return Check(name="context", measured=f"{measured}; {wanted:,} are what a GGUF file of it says", bound="equal",
                 verdict=verdict(holds))  # fmt: skip


def _is_file(form: Form) -> bool:
    return form.path.suffix == ".gguf"
