"""Room for the special tokens that the template and the tools need: in the tokenizer, and as rows of the model.

A functional token starts as the mean of the embeddings of the words it stands for, its tool's name and
description: far better than random, and the first steps do not have to drag it from nowhere (after
Octopus v2). A template's own tokens start as the mean of all rows.
"""

from __future__ import annotations

import torch

from leveret.chat.template import ChatTemplate
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet
from leveret.weights.tokens import resize_tokens


def add_tokens(tokenizer: Tokenizer, template: ChatTemplate, tools: ToolSet | None) -> list[str]:
    """Add the special tokens that `tokenizer` lacks, the template's first; returns those added."""
    functional = () if tools is None else FunctionalDialect(tools).tokens
    needed = [*template.special_tokens, *functional]
    missing = [token for token in dict.fromkeys(needed) if token not in tokenizer.special_ids]
    if missing:
        tokenizer.add_special_tokens(missing)
    return missing


@torch.no_grad()
def add_rows(model: Decoder, tokenizer: Tokenizer, added: list[str], dialect: FunctionalDialect | None) -> None:
    """Give each added token its row, in place; old rows stay as they are, to the bit.

    Checkpoints often have more rows than their tokenizer has tokens. Such spare rows are used before new ones are made.
    """
    sources = {tokenizer.id_of(token): _words_of(token, tokenizer, dialect) for token in added}
    old_size = model.config.vocab_size
    tables = {id(table): table for table in (model.embed_tokens.weight, model.lm_head.weight)}  # one, when tied
    for row, old_ids in sources.items():
        for table in tables.values():
            if row < old_size:
                table[row] = (table[old_ids] if old_ids else table[: min(sources)]).float().mean(dim=0)
    if tokenizer.vocab_size > old_size:
        resize_tokens(
            model, tokenizer.vocab_size, sources=[sources.get(row, []) for row in range(old_size, tokenizer.vocab_size)]
        )


def _words_of(token: str, tokenizer: Tokenizer, dialect: FunctionalDialect | None) -> list[int]:
    if dialect is None or token not in dialect.tool_tokens:
        return []
    tool = dialect.tools[dialect.tool_tokens.index(token)]
    return tokenizer.encode(f"{tool.name.replace('_', ' ')} {tool.description}")
