"""Answers requests with a model and judges them: the part of `evaluate` that is about tool calls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.chat.messages import Message, ToolCall
from leveret.console import Console
from leveret.engine.jobs import Job
from leveret.engine.reply import Reply
from leveret.engine.text import TextModel
from leveret.errors import RequestError, ToolError
from leveret.tools.checker import Verdict, check, normal_text
from leveret.tools.requests import ToolRequest
from leveret.tools.schema import ToolSet
from leveret.tools.score import Judged, Score, score

_AT_ONCE = 64
"""Requests between two updates of the progress bar; how many run together is the engine's business."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A judged request, and what there is in place of calls."""

    judged: Judged
    raw: str | None = None
    """The text of an answer that did not parse."""
    reason: str | None = None
    """Why the request could not be asked."""


@dataclass(frozen=True, kw_only=True)
class ToolEvaluation:
    """What one file of requests showed."""

    file: Path
    answers: tuple[Answered, ...]
    score: Score
    misfits: tuple[str, ...]
    """Expected calls that the model's tools do not admit: these requests cannot be answered right."""
    not_asked: tuple[str, ...]
    """Why requests could not be asked, one reason each: most are longer than the context."""
    seconds: float
    answer_tokens: float
    """Mean length of an answer."""

    def to_json(self) -> dict[str, Any]:
        """The file's entry in evaluation.json."""
        return {
            "file": str(self.file),
            **self.score.to_json(),
            "expected_calls_that_do_not_fit": list(self.misfits),
            "seconds_per_request": self.seconds / len(self.answers),
            "tokens_per_answer": self.answer_tokens,
        }

    def failures(self) -> Iterator[dict[str, Any]]:
        """One JSON object a failed request."""
        for answer in self.answers:
            judged, verdict = answer.judged, answer.judged.verdict
            if not verdict.exact:
                yield {
                    "file": str(self.file),
                    "query": judged.request.query,
                    "error": verdict.error,
                    "lenient": verdict.lenient,
                    "tool": verdict.tool,
                    "parameter": verdict.parameter,
                    "expected": _calls_json(judged.request.calls),
                    "predicted": None if judged.predicted is None else _calls_json(judged.predicted),
                } | {key: value for key in ("raw", "reason") if (value := getattr(answer, key)) is not None}


def evaluate_requests(
    model: TextModel,
    tools: ToolSet,
    file: Path,
    requests: Sequence[ToolRequest],
    console: Console,
    *,
    constrained: bool,
    any_order: bool,
) -> ToolEvaluation:
    """Answer the requests of one file greedily and judge every answer."""
    began = time.perf_counter()
    answers: list[Answered] = []
    num_tokens = 0
    with console.progress(f"tool calls: {file.name}", len(requests), "request") as progress:
        for start in range(0, len(requests), _AT_ONCE):
            part = requests[start : start + _AT_ONCE]
            for request, reply in zip(part, _replies(model, part, constrained), strict=True):
                answers.append(_judge(request, reply, tools, any_order))
                num_tokens += reply.usage.completion_tokens if isinstance(reply, Reply) else 0
            exact = sum(answer.judged.verdict.exact for answer in answers)
            progress.update(len(answers), exact=f"{exact / len(answers):.1%}")
    return ToolEvaluation(
        file=file,
        answers=tuple(answers),
        score=score(answer.judged for answer in answers),
        misfits=tuple(_misfits(requests, tools, constrained)),
        not_asked=tuple(answer.reason for answer in answers if answer.reason is not None),
        seconds=time.perf_counter() - began,
        answer_tokens=num_tokens / len(requests),
    )


def _replies(model: TextModel, requests: Sequence[ToolRequest], constrained: bool) -> list[Reply | str]:
    """The reply to each request, or why it could not even be asked."""
    replies: list[Reply | str] = ["" for _ in requests]
    jobs: dict[int, Job] = {}
    for index, request in enumerate(requests):
        conversation = [Message("user", request.query)]
        try:
            job = model.prepare_chat(
                conversation, tools="all", constrained=constrained, temperature=0.0, repetition_penalty=1.0
            )
            model.engine.check(job.request)
            jobs[index] = job
        except RequestError as error:
            replies[index] = error.message
    answered = model.run(list(jobs.values())) if jobs else []
    for index, reply in zip(jobs, answered, strict=True):
        replies[index] = reply
    return replies


def _judge(request: ToolRequest, reply: Reply | str, tools: ToolSet, any_order: bool) -> Answered:
    if isinstance(reply, str):
        tool = request.calls[0].name if request.calls else None
        verdict = Verdict(exact=False, lenient=False, error="not_asked", tool=tool)
        return Answered(judged=Judged(request=request, predicted=None, verdict=verdict), reason=reply)
    predicted = reply.tool_calls if reply.parsed else None
    verdict = check(predicted, request.calls, tools, ordered=not any_order)
    raw = None if reply.parsed else _as_written(reply)
    return Answered(judged=Judged(request=request, predicted=predicted, verdict=verdict), raw=raw)


def _as_written(reply: Reply) -> str:
    """What came instead of calls, or what there is of one that was cut off."""
    cut = reply.cut_call
    return reply.content if cut is None else f"{reply.content}{cut.name} {cut.arguments}"


def _misfits(requests: Sequence[ToolRequest], tools: ToolSet, constrained: bool) -> Iterator[str]:
    for request in requests:
        for call in request.calls:
            try:
                tool = tools.get(call.name)
                arguments = tool.validate(call.arguments)
            except ToolError as error:
                yield f"{request.query!r}: {error.message}"
                continue
            for name in (each.name for each in tool.parameters if each.extractive and each.free and constrained):
                if normal_text(str(arguments.get(name, ""))) not in normal_text(request.query):
                    yield f"{request.query!r}: {call.name}: {name} is no piece of the request: {arguments[name]!r}"


def _calls_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
