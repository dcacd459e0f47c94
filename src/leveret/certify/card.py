"""The model card: README.md of a model directory, written from facts (card_facts.py) and from the certificate.

English first, then the same in Chinese. The metadata at the top is what the Hugging Face hub reads. A card that a
person wrote is never overwritten: only the part between the two certificate marks is put in or replaced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from leveret.certify.card_chinese import chinese_section
from leveret.certify.card_facts import ModelFacts, StageFacts, model_facts, number, stage_facts
from leveret.certify.card_pieces import curve_line, details, duration, table
from leveret.certify.certificate import Certificate, rows_of
from leveret.certify.config import CertifyConfig
from leveret.certify.references import short_form
from leveret.paths import atomic_write

OURS = "<!-- Written by `leveret certify` from what the stages recorded. -->"
BEGIN, END = "<!-- certificate -->", "<!-- end of certificate -->"

TRANSFORMERS_FAMILIES = ("mistral", "llama", "mixtral")
"""Families whose directories transformers loads by itself."""


def write_card(config: CertifyConfig, directory: Path, certificate: Certificate) -> Path:
    """Write or update README.md of a model directory; returns its path."""
    path = directory / "README.md"
    written = path.read_text("utf-8") if path.is_file() else ""
    section = certificate_section(certificate)
    if written and OURS not in written:
        atomic_write(path, _with_section(written, section))
        return path
    model, stages = model_facts(directory), [stage_facts(folder) for folder in config.sources]
    atomic_write(path, render_card(config, model, stages, certificate))
    return path


def render_card(
    config: CertifyConfig, model: ModelFacts, stages: Sequence[StageFacts], certificate: Certificate
) -> str:
    """The whole card as Markdown."""
    title = config.title or model.name
    parts = [
        metadata(config, model),
        f"# {title}",
        OURS,
        _what_it_is(config, model, certificate),
        "[中文说明](#中文说明)",
        _architecture(model),
        _making(stages),
        _curves(stages),
        _scores(stages),
        certificate_section(certificate),
        _how_to_run(title, model),
        _limits(model, stages, certificate),
        chinese_section(title, model, stages, certificate),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(config: CertifyConfig, model: ModelFacts) -> str:
    """The YAML header that the hub reads."""
    tags = ["leveret", model.config.family, *(["tool-calling"] if model.tools else [])]
    tags += [f"{model.quantization.bits}-bit", model.quantization.layout] if model.quantization else []
    library = "transformers" if model.config.family in TRANSFORMERS_FAMILIES else "leveret"
    lines = ["---", "language:", *(f"- {language}" for language in config.languages), f"license: {config.license}"]
    lines += [f"library_name: {library}", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join([*lines, "---"])


def certificate_section(certificate: Certificate) -> str:
    """The part of the card that says which forms were compared and what came out."""
    first = short_form(certificate.forms[0]["name"])
    lines = [BEGIN, "## Certificate", ""]
    if certificate.passed:
        lines.append(f"Every form below was compared with `{first}` and gives the same answers within its bounds.")
    else:
        lines.append(f"**FAILED.** At least one form below does not give the answers of `{first}`.")
    columns = ("form", "check", "found", "bound", "verdict")
    rows = [(f"`{short_form(form)}`", *rest) for form, *rest in rows_of(certificate.comparisons)]
    lines += ["", table(columns, rows)]
    for comparison in certificate.comparisons:
        if comparison.parting is not None and not comparison.passed:
            lines += ["", f"`{short_form(comparison.second)}` parts {comparison.parting}"]
    lines += [f"\nLeft out: {note}" for note in certificate.notes]
    return "\n".join([*lines, END])


def _with_section(written: str, section: str) -> str:
    """A person's card with the certificate put in, or in place of the one it had."""
    old = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if old.search(written):
        return old.sub(lambda _: section, written, count=1)
    return f"{written.rstrip()}\n\n{section}\n"


def _what_it_is(config: CertifyConfig, model: ModelFacts, certificate: Certificate) -> str:
    size = number(model.parameters.total)
    what = f"A {model.config.family} language model of {size} parameters"
    if model.parameters.active != model.parameters.total:
        what += f", {number(model.parameters.active)} of them active for a token"
    if model.quantization:
        what += f", its linear layers stored in {model.quantization.bits} bits"
    what += f" ({model.bytes_on_disk / 1e6:,.1f} MB)."
    if model.tools:
        functions = "function" if len(model.tools) == 1 else "functions"
        what += f" It calls {len(model.tools)} {functions}: {', '.join(f'`{name}`' for name in model.tools)}."
    warning = "" if certificate.passed else "\n\n> **The certificate of this model failed; see below.**"
    return "\n\n".join(text for text in (config.description, what) if text) + warning


def _architecture(model: ModelFacts) -> str:
    config = model.config
    rows = [
        ("family", config.family),
        ("parameters", number(model.parameters.total)),
        ("of them embedding", number(model.parameters.embedding)),
        ("layers", number(config.num_hidden_layers)),
        ("hidden size", number(config.hidden_size)),
        ("feed-forward size", number(config.intermediate_size)),
        ("query / key-value heads", f"{config.num_attention_heads} / {config.num_key_value_heads}"),
        ("vocabulary", number(config.vocab_size)),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("embedding and head", "one matrix" if config.tie_word_embeddings else "two matrices"),
        ("numbers", model.dtype),
    ]
    if config.moe is not None:
        rows.append(("experts", f"{config.moe.num_experts}, {config.moe.experts_per_token} for a token"))
    if config.sliding_window is not None:
        rows.append(("sliding window", f"{config.sliding_window:,} tokens"))
    if model.quantization:
        rows += [("quantized layers", model.quantization.description), *model.quantization.rows]
    return "## Architecture\n\n" + table(("", ""), rows)


def _making(stages: Sequence[StageFacts]) -> str:
    """Data sources and hyper-parameters, stage by stage."""
    if not stages:
        return ""
    parts = ["## How it was made", "What each stage was told, and what it reported. Paths are those of the run."]
    for stage in stages:
        parts.append(f"### {stage.name}" + (f" (`leveret {stage.command}`)" if stage.command else ""))
        if stage.seconds:
            parts.append(f"Took {duration(stage.seconds)}.")
        if stage.results:
            parts.append(table(("result", ""), list(stage.results.items())))
        if stage.settings:
            parts.append(details("Settings", table(("setting", ""), list(stage.settings.items()))))
    return "\n\n".join(parts)


def _curves(stages: Sequence[StageFacts]) -> str:
    lines = [line for stage in stages for key in ("loss", "validation_loss") if (line := curve_line(stage, key))]
    return "## Training curves\n\n" + "\n".join(f"* {line}" for line in lines) if lines else ""


def _scores(stages: Sequence[StageFacts]) -> str:
    scored = [stage for stage in stages if stage.scores]
    parts = ["## Evaluation"]
    for stage in scored:
        parts += [f"### {stage.name}", table(("measure", "score"), list(stage.scores.items()))]
    if not scored:
        parts.append("No evaluation result was recorded for this card.")
    return "\n\n".join(parts)


def _how_to_run(title: str, model: ModelFacts) -> str:
    shell = f"leveret chat {title}\nleveret serve {title}   # OpenAI-compatible, http://127.0.0.1:8000/v1"
    python = f'import leveret\n\nmodel = leveret.load("{title}")\n'
    if model.tools:
        python += 'model.chat([{"role": "user", "content": "..."}], tools="all").tool_calls'
    else:
        python += 'print(model.generate("...", max_tokens=64))'
    parts = [
        "## How to run",
        f"`{title}` is the folder of this card.",
        f"```sh\n{shell}\n```",
        f"```python\n{python}\n```",
    ]
    if model.quantization:
        parts.append(model.quantization.readers)
    elif model.config.family in TRANSFORMERS_FAMILIES:
        loading = f'AutoModelForCausalLM.from_pretrained("{title}", dtype="auto")'
        parts.append(f"transformers loads it too: `{loading}`.")
    return "\n\n".join(parts)


def _limits(model: ModelFacts, stages: Sequence[StageFacts], certificate: Certificate) -> str:
    limits = []
    if model.parameters.total < 10**9:
        limits.append(
            f"{number(model.parameters.total)} parameters hold little knowledge of the world. Do not rely on what it "
            "states as fact; check what it calls before acting on it."
        )
    if not any(stage.scores for stage in stages):
        limits.append("No evaluation was recorded, so nothing is known about how good it is.")
    else:
        limits.append("The scores are of the sets named above; other wordings and topics may do worse.")
    if model.quantization:
        limits.append("Quantized weights change some answers; the certificate says by how much.")
    if not certificate.passed:
        limits.append("Its certificate failed: do not publish it before the difference is explained.")
    limits.append(f"It has seen at most {model.config.max_position_embeddings:,} tokens at once.")
    limits.append("No safety training and no test for harmful output is on record.")
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)
