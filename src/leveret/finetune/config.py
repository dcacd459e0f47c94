"""What `leveret finetune` can be told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from leveret.chat.template import BUILTIN_NAMES
from leveret.config import Config, Positional, Rehearsal
from leveret.data.masks import Mask
from leveret.data.sample_rows import OnLong
from leveret.finetune.adapter_config import AdapterTraining
from leveret.spelling import suggest
from leveret.trainer.config import DataSource, TrainingConfig


class FinetuneTraining(TrainingConfig):
    """How the model is trained: as in pretraining, with smaller steps and without weight decay."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """The peak learning rate. 1e-5 to 1e-4 for models of a billion parameters; small ones take more."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay on matrices and embeddings; norms and biases are never decayed."""


class FinetuneConfig(Config):
    """Teach a model conversations and tool calls."""

    model: Annotated[str, Positional(0, places=True)]
    """The model to start from: a folder or a hub name."""
    output: Path
    """Gets model/ (a Hugging Face directory) or adapter/, metrics.html, metrics.jsonl, xray.html, and checkpoints/
    meanwhile."""
    data: Annotated[list[DataSource], Field(min_length=1)]
    """Conversations, or requests with the calls that answer them (`{"query", "calls"}`), each with a weight."""
    validation: list[Path] = Field(default_factory=list)
    """Held-out data in the same formats; its loss is measured during training and at the end."""
    exclude_rows: list[str] | Path = Field(default_factory=list)
    """Training samples to leave out, by the keys that forensics/ and the X-ray show (`chats.jsonl:12`); a list, or a
    file with one key on each line."""
    template: str | None = None
    """Chat template: a built-in name or a Jinja file. None: the model's own."""
    tools: Path | None = None
    """Tool set (JSON): each tool becomes one token of the model, and calls are written with it."""
    functional_token_weight: Annotated[float, Field(gt=0)] = 1.0
    """How much the tools' tokens count in the loss, relative to other tokens."""
    mask: Mask = "assistant"
    """Which tokens are trained: replies with their stop (`assistant`; `aquila` is the same), replies with all that
    their format writes after them, segments tokenized alone (`firefly`), replies with the end token taught at the next
    user marker (`lingowhale`), or everything, prompts too (`full`)."""
    neftune: Annotated[float, Field(gt=0)] | None = None
    """NEFTune's alpha (5 is usual): noise on the embeddings while training, alpha / sqrt(tokens of the document *
    hidden size) at most. None: no noise."""
    bpe_dropout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability to pass over a merge when training text is tokenized (0.1 is usual), drawn anew for each of the first
    eight passes over the data, which begin again after that. Validation and the saved tokenizer never drop any."""
    on_long: Annotated[OnLong, Rehearsal("truncate")] = "drop"
    """What happens to a sample longer than `training.sequence_length`; how many there were is reported. `split`
    divides conversations at their turns, the system message and the tools in each part; a longer turn is dropped."""
    on_untrained: Annotated[Literal["error", "drop"], Rehearsal("drop")] = "error"
    """What happens to a sample in which nothing is trained (no assistant turn); the dropped are counted."""
    adapter: AdapterTraining | None = None
    """Train a small change beside the frozen model. None: train the whole model. `adapter={}` is LoRA everywhere."""
    training: FinetuneTraining = FinetuneTraining()
    """Steps, batch, learning rate, precision, checkpoints."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the order of the data."""

    @field_validator("template")
    @classmethod
    def _is_built_in_or_a_file(cls, name: str | None) -> str | None:
        """A typing error in a name is told before a recipe begins; a file may be there only later."""
        if name is None or name in BUILTIN_NAMES or Path(name).suffix or Path(name).name != name or Path(name).exists():
            return name
        nearest = suggest(name, BUILTIN_NAMES)
        known = f"did you mean {nearest}?" if nearest else f"built in are {', '.join(BUILTIN_NAMES)}"
        raise ValueError(f"{name!r} is no built-in chat template, and no file; {known}")

    def whole_models(self) -> Iterator[tuple[str, str, str]]:
        """All of a model is trained, unless an adapter is; that can be merged into whole numbers only."""
        if self.adapter is None:
            yield "model", self.model, "only an adapter can be trained on it (adapter={})"
        elif self.adapter.merge:
            yield "model", self.model, "adapter.merge cannot change it; leave merge out and load the adapter"

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneConfig:
        if self.tools is None and self.functional_token_weight != 1:
            raise ValueError(
                f"functional_token_weight ({self.functional_token_weight}) is read with tools only, whose tokens it "
                "weighs"
            )
        return self
