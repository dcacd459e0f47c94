"""transformers and llama.cpp behind our sampler: the answers of our own engine, by other programs' logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import leveret
from leveret.console import Console
from leveret.engine.request import Request, SamplingParams
from leveret.engine.text import TextModel
from leveret.errors import ConfigError, RequestError, WeightsError
from leveret.export.config import ExportConfig
from leveret.export.run import run as export

PROMPTS = ["Set a timer for five minutes", "明天早上七点半", "Once upon a time a small hare"]
OPTIONS = [
    {"max_tokens": 12},
    {"max_tokens": 12, "temperature": 1.5, "seed": 3, "top_k": 20, "presence_penalty": 1.0},
    {"max_tokens": 9, "repetition_penalty": 1.3},
]


@pytest.fixture(scope="module", params=["transformers", "llama.cpp"])
def other(request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    if request.param == "transformers":
        pytest.importorskip("transformers", reason="transformers is not installed")
        return leveret.load(model_dir, dtype="float32", backend="transformers")
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    output = tmp_path_factory.mktemp("gguf")
    export(ExportConfig(model=str(model_dir), output=output, type="f32"), Console(quiet=True))
    model = leveret.load(next(output.glob("*.gguf")), backend="llama.cpp")
    request.addfinalizer(model.engine.close)
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "sampled", "penalized"])
def test_several_requests_at_once_are_answered_as_by_our_engine(
    other: TextModel, model: TextModel, options: dict[str, object]
) -> None:
    texts = {}
    for each in (model, other):
        jobs = [each.prepare_text(prompt, **options) for prompt in PROMPTS]  # type: ignore[arg-type]
        texts[each] = [reply.content for reply in each.run(jobs)]
    assert texts[other] == texts[model]
    assert any(texts[model])


def test_a_constrained_answer_and_its_log_probabilities_are_the_same(other: TextModel, model: TextModel) -> None:
    choices = {"choice": ["a timer", "an alarm", "没有"], "logprobs": 3}
    replies = [each.run([each.prepare_text("Set ", **choices)])[0] for each in (model, other)]  # type: ignore[arg-type]
    assert replies[0].content == replies[1].content
    assert replies[0].content in choices["choice"]


def test_requests_wait_for_a_sequence_and_leave_it_to_the_next(other: TextModel) -> None:
    places = other.engine._model.max_sequences  # type: ignore[attr-defined]
    request = Request(prompt_ids=(5, 6, 7), params=SamplingParams(max_tokens=2))
    found = other.engine.generate([request] * (places + 3))
    assert len({completion.ids for completion in found}) == 1
    stats = other.engine.stats
    assert (stats.running_requests, stats.waiting_requests) == (0, 0)


def test_a_row_that_goes_wrong_ends_alone(other: TextModel) -> None:
    good = other.engine.submit(Request(prompt_ids=(5, 6), params=SamplingParams(max_tokens=2)))
    broken = other.engine.submit(replace(good.request, prompt_ids=(7,), watch=lambda token_id: bool(1 // 0)))
    while not (good.finish_reason and broken.finish_reason):
        other.engine.step()
    assert len(good.completion().ids) == 2 and isinstance(broken.error, ZeroDivisionError)
    assert other.engine.stats.running_requests == 0


def test_closing_a_stream_cancels_its_request(other: TextModel) -> None:
    before = other.engine.stats.cancelled_requests
    stream = other.engine.stream(Request(prompt_ids=(5, 6, 7), params=SamplingParams(max_tokens=20)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert other.engine.stats.cancelled_requests == before + 1
    assert other.engine.stats.running_requests == 0


def test_a_prompt_longer_than_a_step_may_take_is_read_in_pieces(
    other: TextModel, model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other.engine._model, "max_fed_tokens", 4)  # type: ignore[attr-defined]
    texts = [each.generate("Once upon a time a small hare met a slow", max_tokens=6) for each in (model, other)]
    assert texts[0] == texts[1]


def test_weights_are_asked_of_our_own_engine_only(other: TextModel) -> None:
    with pytest.raises(RequestError, match="another program"):
        _ = other.model


def test_each_program_names_the_files_that_it_reads(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reads GGUF files.*is a directory"):
        leveret.load(model_dir, backend="llama.cpp")
    with pytest.raises(ConfigError, match=r"did you mean transformers"):
        leveret.load(model_dir, backend="transformer")
    with pytest.raises(ConfigError, match="for our own engine"):
        leveret.load(model_dir, backend="transformers", adapter=tmp_path)


def test_a_file_that_llama_cpp_cannot_load_is_named(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from leveret.engine.backends.by_llama_cpp import LlamaCppSequences

    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and nothing else")
    with pytest.raises(WeightsError, match=r"broken\.gguf"):
        LlamaCppSequences(file)
