"""What a request asks for, as jobs for the worker and as what the reply needs to know.

A completion of several prompts, `n` choices each, is prompts times `n` jobs; with `best_of`, more, of which the `n`
whose tokens are likeliest on average are given back. Each choice of a seeded request has a seed of its own, counted up
from the one given. A prompt is read once for all of them, and looked at for its length before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leveret.engine.jobs import Job, Prompt
from leveret.engine.reply import Delta, Reply, Usage
from leveret.engine.structure import AnswerOptions
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.serve.protocol import ChatBody, CompletionBody
from leveret.tokenizer.files import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that has been read."""

    jobs: list[Job]
    jobs_per_prompt: int = 1
    choices_per_prompt: int = 1
    """Of so many jobs, so many are given back."""
    echoes: tuple[str, ...] = ()
    """The prompts' texts, where they come before their completions."""
    tokenizer: Tokenizer | None = None
    """Given when log probabilities are wanted."""
    silent: bool = False
    """Whether only the prompt is wanted (max_tokens 0): one token is generated and thrown away."""

    def best(self, replies: Sequence[Reply]) -> list[Reply]:
        """The replies to give back, the likeliest of each prompt first if there is a choice."""
        if self.jobs_per_prompt == self.choices_per_prompt:
            return list(replies)
        kept: list[Reply] = []
        for first in range(0, len(replies), self.jobs_per_prompt):
            ranked = sorted(replies[first : first + self.jobs_per_prompt], key=_mean_logprob, reverse=True)
            kept += ranked[: self.choices_per_prompt]
        return kept

    def shown(self, deltas: list[Delta]) -> list[Delta]:
        """The deltas as the client gets them."""
        if not self.silent:
            return deltas
        kept = [each for each in deltas if each.prompt_scores or each.usage]
        return [replace(each, content="", scores=(), usage=_without_answer(each.usage)) for each in kept]


def ask_text(model: TextModel, body: CompletionBody, *, most_tokens: int | None = None) -> Asked:
    """The jobs of a completion request. RequestError for what cannot be served."""
    options = _within(body.options(), most_tokens)
    silent = bool(body.echo) and body.most_tokens == 0
    if silent:
        options |= {"max_tokens": 1, "ignore_eos": True}
    wanted = body.num_logprobs
    num_jobs = max(body.best_of or 1, body.n or 1)
    if num_jobs > (body.n or 1):
        options["logprobs"] = wanted or 0
    scored = wanted if body.echo else None
    jobs = []
    for text in body.prompts:
        prompt = model.read_text(text, **options)
        model.engine.check(prompt.request)
        jobs += [replace(job, prompt_logprobs=scored) for job in _jobs(prompt, num_jobs)]
    tokenizer = model.tokenizer
    texts = (
        prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=True) for prompt in body.prompts
    )
    return Asked(
        jobs=jobs,
        jobs_per_prompt=num_jobs,
        choices_per_prompt=body.n or 1,
        echoes=tuple(texts) if body.echo else (),
        tokenizer=None if wanted is None else tokenizer,
        silent=silent,
    )


def ask_chat(model: TextModel, body: ChatBody, *, most_tokens: int | None = None) -> Asked:
    """The jobs of a chat request. RequestError for what cannot be served."""
    names, choice = body.offer()
    try:
        options = _within(body.options(), most_tokens)
        prompt = model.read_chat(
            body.messages,
            tools=names,
            tool_choice=choice,
            parallel_tool_calls=body.parallel,
            shape=body.shape,
            **options,
        )
        model.engine.check(prompt.request)
    except RequestError as error:  # in the engine's words for what a chat calls by others
        if error.param == "prompt":
            error.param = "messages"
        if error.param == "max_tokens" and body.max_completion_tokens is not None:
            error.param = "max_completion_tokens"
        raise
    number = body.n or 1
    jobs = _jobs(prompt, number)
    tokenizer = None if body.num_logprobs is None else model.tokenizer
    return Asked(jobs=jobs, jobs_per_prompt=number, choices_per_prompt=number, tokenizer=tokenizer)


def _within(options: AnswerOptions, most_tokens: int | None) -> AnswerOptions:
    """The options, if they ask for no more tokens than this server gives."""
    asked = options.get("max_tokens")
    if most_tokens is not None and asked is not None and asked > most_tokens:
        raise RequestError(
            f"max_tokens is {asked}; this server gives at most {most_tokens} tokens a request",
            param="max_tokens",
            code="invalid_value",
        )
    return options


def _jobs(prompt: Prompt, number: int) -> list[Job]:
    """Jobs for so many answers to a prompt; behind the highest seed of 64 bits comes the lowest."""
    seed = prompt.request.params.seed
    if seed is None:
        return [prompt.job() for _ in range(number)]
    return [prompt.job(seed=(seed + index + 2**63) % 2**64 - 2**63) for index in range(number)]


def _mean_logprob(reply: Reply) -> float:
    logprobs = [each.score.logprob for each in reply.scores if each.score.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")


def _without_answer(usage: Usage | None) -> Usage | None:
    return None if usage is None else replace(usage, completion_tokens=0)
