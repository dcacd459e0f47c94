"""`leveret.load(...).predict`: one line for an answer, with Aquila2's options."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import leveret
from leveret.chat.messages import Message
from leveret.chat.template import builtin_template
from leveret.engine.text import TextModel
from leveret.errors import ConfigError, RequestError
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.precision.at_load import quantize_in_memory
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.adapter import save_adapter
from leveret.weights.adapter_load import load_adapter
from leveret.weights.load import load_model
from leveret.weights.save import save_model

from .conftest import TEXTS, random_decoder, tiny_config


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "chat"
    template = builtin_template("hare")
    tokenizer = train_byte_bpe(
        TEXTS, vocab_size=320, special_tokens=["</s>", *template.special_tokens], eos_token="</s>",
        chat_template=template.source,
    )  # fmt: skip
    tokenizer.save(directory)
    save_model(random_decoder(tiny_config(tokenizer.vocab_size)), directory)
    return directory


def test_it_answers_after_a_history_that_stays_as_it_was(model_dir: Path) -> None:
    model = leveret.load(model_dir)
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
    answer = model.predict("Again", history=history, system="Be brief.", max_tokens=8)
    messages = [Message("system", "Be brief."), *history, Message("user", "Again")]
    assert answer == model.chat(messages, max_tokens=8).content and len(history) == 2


def test_a_base_model_continues_and_base_can_be_asked_for(model_dir: Path) -> None:
    model = leveret.load(model_dir)
    base = TextModel(model.model, model.tokenizer)
    expected = base.generate("Once upon", max_tokens=8)
    assert base.predict("Once upon", max_tokens=8) == expected == model.predict("Once upon", base=True, max_tokens=8)
    with pytest.raises(RequestError, match="no chat template"):
        base.predict("Once upon", base=False)


def test_a_text_that_is_continued_has_no_history(model_dir: Path) -> None:
    model = leveret.load(model_dir)
    assert model.predict("Hello", history=None, max_tokens=4) == model.predict("Hello", max_tokens=4)
    for options in ({"history": [{"role": "user", "content": "Hi"}]}, {"system": "Be brief."}):
        with pytest.raises(RequestError, match="continued as a base model"):
            model.predict("Hello", base=True, **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_text(model_dir: Path) -> None:
    model = leveret.load(model_dir)
    options = {"temperature": 1.0, "top_p": 0.9, "top_k": 15, "max_tokens": 12}
    first, again, other = (model.predict("Hi", seed=seed, **options) for seed in (123, 123, 7))
    assert first == again != other


def test_options_of_another_program_are_named(model_dir: Path) -> None:
    with pytest.raises(RequestError, match="did you mean 'top_k'"):
        leveret.load(model_dir).predict("Hi", topk=15)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_an_adapter_goes_onto_the_quantized_model(model_dir: Path, tmp_path: Path, kind: str) -> None:
    trained = load_model(model_dir)
    add_lora(trained, LoraSettings(rank=4, alpha=8.0), "all-linear", seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    save_adapter(trained, tmp_path, base=str(model_dir))
    expected = load_model(model_dir)
    quantize_in_memory(expected, kind)
    load_adapter(expected, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = leveret.load(model_dir, adapter=tmp_path, quantize=kind)
    with torch.inference_mode():
        torch.testing.assert_close(model.model(ids), expected(ids), rtol=0, atol=0)
        assert not torch.equal(model.model(ids), leveret.load(model_dir, quantize=kind).model(ids))


def test_another_program_quantizes_by_itself(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="our own engine"):
        leveret.load(model_dir, backend="transformers", quantize="int8")
