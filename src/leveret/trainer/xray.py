"""The label X-ray: what exactly will be learnt, shown before the first step, and refused when it cannot be right.

The commonest silent failure of fine-tuning is a mask: the loss falls nicely while the model learns the user's
turns, or nothing, or everything but the stop token (and then never stops). So before step 0 some samples are
shown token by token, trained ones in color, with the share of trained tokens of each source; and the run is
refused

* when a sample has no trained token,
* when a source never trains a stop token.

The console gets one sample of each source, `xray.html` several. No torch here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leveret.console import Console
from leveret.errors import NothingToTrain
from leveret.paths import atomic_write

if TYPE_CHECKING:
    from rich.text import Text

    from leveret.data.packing import Sample
    from leveret.tokenizer.files import Tokenizer

_SAMPLES_ON_PAGE = 5
_TOKENS_ON_CONSOLE = 200

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#8a94a6; --page:#f7f8fa; --card:#fff; --line:#e4e7ec;
  --on:#c9f0d4; --chip:#d7e3ff; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ef; --soft:#7f8aa0; --page:#0f131a; --card:#171c26;
  --line:#2c3442; --on:#1d5a35; --chip:#2a3f6e; } }
body { margin:0; padding:24px; background:var(--page); color:var(--ink); font:15px/1.5 system-ui, sans-serif; }
table { border-collapse:collapse; } td, th { padding:2px 18px 2px 0; text-align:left; }
pre { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px; white-space:pre-wrap;
  overflow-wrap:anywhere; color:var(--soft); }
pre b { font-weight:400; color:var(--ink); background:var(--on); border-right:1px solid var(--card); }
pre i { font-style:normal; outline:1px dotted; outline-offset:-1px; border-radius:3px; }
"""


@dataclass(frozen=True, kw_only=True)
class SourceLabels:
    """What one source of samples trains."""

    name: str
    samples: Sequence[Sample]
    tokens: int
    trained_tokens: int
    stopped: int
    """Samples in which a stop token is trained."""

    @property
    def share(self) -> float:
        """Trained tokens as a share of all."""
        return self.trained_tokens / max(self.tokens, 1)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one or more tokens that reads as text."""

    text: str
    trained: bool
    special: bool


def examine(
    sources: Mapping[str, Sequence[Sample]], *, tokenizer: Tokenizer, stops: Sequence[str]
) -> list[SourceLabels]:
    """Count what each source trains; `stops` are the texts (special tokens or not) that end a reply.

    NothingToTrain when a source has no sample, a sample trains nothing, or a source never trains a stop.
    """
    labels = []
    for name, samples in sources.items():
        if not samples:
            raise NothingToTrain(f"{name}: there is no sample to train on")
        trained = stopped = 0
        for sample in samples:
            targets = trained_ids(sample)
            if not targets:
                raise NothingToTrain(
                    f"{name}: sample {sample.key} trains no token ({len(sample.ids)} tokens, all masked)",
                    hint="check that it has an assistant turn and that the template marks it for training",
                )
            trained += len(targets)
            stopped += _has_stop(targets, tokenizer, stops)
        if not stopped:
            raise NothingToTrain(
                f"{name}: the stop token ({' or '.join(map(repr, stops)) or 'there is none'}) is not trained in any of "
                f"{len(samples):,} samples, so the model would not learn to stop",
                hint="the chat template must close each assistant turn with it, inside the trained part; "
                "samples cut at sequence_length lose it",
            )
        tokens = sum(len(sample.ids) for sample in samples)
        labels.append(SourceLabels(name=name, samples=samples, tokens=tokens, trained_tokens=trained, stopped=stopped))
    return labels


def _has_stop(targets: Sequence[int], tokenizer: Tokenizer, stops: Sequence[str]) -> bool:
    special = {tokenizer.special_ids[stop] for stop in stops if stop in tokenizer.special_ids}
    if special.intersection(targets):
        return True
    plain = [stop for stop in stops if stop not in tokenizer.special_ids]
    return bool(plain) and any(stop in tokenizer.decode(targets) for stop in plain)


def trained_ids(sample: Sample) -> list[int]:
    """The ids that a sample teaches; its first place never does, as nothing stands before it."""
    labels = sample.ids if sample.labels is None else sample.labels
    return [token for token, trained in zip(labels[1:], sample.mask[1:], strict=True) if trained]


def show(labels: Sequence[SourceLabels], *, tokenizer: Tokenizer, console: Console, page: Path) -> None:
    """One sample of each source on the console, several in the HTML file `page`."""
    from rich.text import Text

    columns = ("source", "samples", "tokens", "trained", "share", "stop trained")
    rows = [
        (label.name, len(label.samples), label.tokens, label.trained_tokens, f"{label.share:.1%}", label.stopped)
        for label in labels
    ]
    console.table("label X-ray: what is trained", columns, rows)
    for label in labels:
        sample = label.samples[0]
        legend = Text.assemble(
            (f"{label.name} {sample.key}  ", "dim"), "▸", ("trained", "black on green"), "◂", (" read only", "dim")
        )
        console.print(legend)
        console.print(_colored(pieces(sample, tokenizer, limit=_TOKENS_ON_CONSOLE)))
    atomic_write(page, _page(labels, rows, columns, tokenizer))
    console.info(f"more samples: {page}")


def pieces(sample: Sample, tokenizer: Tokenizer, *, limit: int | None = None) -> list[Piece]:
    """A sample as text, cut at every token that ends a whole character."""
    found: list[Piece] = []
    pending = b""
    for place, (token, trained) in enumerate(zip(sample.ids[:limit], sample.mask, strict=False)):
        pending += tokenizer.token_bytes(token)
        following = sample.mask[place + 1] if place + 1 < len(sample.ids) else not trained
        try:
            text = pending.decode()
        except UnicodeDecodeError:
            if following == trained:
                continue  # the rest of the character is in the next token
            text = pending.decode(errors="replace")
        if trained and place and sample.labels is not None and sample.labels[place] != token:
            text += f"→{tokenizer.decode([sample.labels[place]])}"  # taught is another token than stands here
        found.append(Piece(text=text, trained=bool(trained) and place > 0, special=tokenizer.is_special(token)))
        pending = b""
    return found


def _colored(parts: Sequence[Piece]) -> Text:
    """In color, and between ▸ and ◂ what is trained: a log file and some eyes see no color."""
    from rich.text import Text

    text, trained = Text(), False
    for part in parts:
        if part.trained != trained:
            text.append("▸" if part.trained else "◂", style="bold green")
        trained = part.trained
        style = "black on green" if trained else "dim"
        text.append(part.text, style=f"{style} bold" if part.special else style)
    return text.append("◂", style="bold green") if trained else text


def _page(
    labels: Sequence[SourceLabels], rows: Sequence[tuple[object, ...]], columns: Sequence[str], tokenizer: Tokenizer
) -> str:
    head = "".join(f"<th>{column}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows)
    samples = "".join(
        f"<h3>{html.escape(_heading(label.name, sample.key))}</h3><pre>{_marked(pieces(sample, tokenizer))}</pre>"
        for label in labels
        for sample in label.samples[:_SAMPLES_ON_PAGE]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>label X-ray</title>'
        f"<style>{_STYLE}</style></head><body><h1>label X-ray</h1><p>Tokens on a colored "
        "ground are trained, the others only read; special tokens are outlined.</p>"
        f"<table><tr>{head}{body}</table>{samples}</body></html>\n"
    )


def _marked(parts: Sequence[Piece]) -> str:
    text = []
    for part in parts:
        shown = html.escape(part.text)
        shown = f"<i>{shown}</i>" if part.special else shown
        text.append(f"<b>{shown}</b>" if part.trained else shown)
    return "".join(text)


def _heading(source: str, key: str) -> str:
    """Where a sample comes from; a key that begins with its source says it all."""
    return key if key.startswith(source) else f"{source} {key}"
