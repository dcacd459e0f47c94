"""TokenizerConfig: which texts a tokenizer is trained on, how large it gets, and which special tokens it has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from leveret.chat.template import BuiltinName
from leveret.config import Config, Positional, Rehearsal
from leveret.tokenizer.train import Split


class TokenizerConfig(Config):
    """Train a byte-level BPE tokenizer and save it as Hugging Face files."""

    documents: Annotated[list[Path], Positional(0)] = Field(default_factory=list)
    """Texts to learn from: text files, JSON files whose records have `text`, or folders of them."""
    conversations: list[Path] = Field(default_factory=list)
    """Conversations to learn from as well, in any format that `leveret finetune` reads."""
    output: Path
    """The folder to write: tokenizer.json and its companions, and tokenizer_report.json."""
    vocab_size: Annotated[int, Field(gt=256), Rehearsal(2048)] = 32_000
    """Ids at most: the 256 bytes, the merges, and the special tokens."""
    split: Split = "leveret"
    """What counts as a word. leveret: each Han character and each digit is one; gpt2: the rule of GPT-2 and Aquila."""
    min_frequency: Annotated[int, Field(ge=1)] = 2
    """How often a pair must be seen to become a token."""
    template: BuiltinName | None = "chatml"
    """The built-in chat template to put in, with its special tokens. null: none."""
    end_token: str = "<|endoftext|>"
    """The special token after every document (EOS)."""
    padding_token: str = "<|padding|>"
    """The special token that fills up rows; a token of its own, so that hiding it never hides an EOS."""
    special_tokens: list[str] = Field(default_factory=list)
    """Further special tokens, after those of the template, in this order."""
    max_bytes: Annotated[int, Field(gt=0), Rehearsal(2_000_000)] = 1_000_000_000
    """Text to read at most, in bytes of UTF-8; what comes after is not looked at."""

    @model_validator(mode="after")
    def _has_input(self) -> TokenizerConfig:
        if not self.documents and not self.conversations:
            raise ValueError("name documents or conversations to learn from")
        return self
