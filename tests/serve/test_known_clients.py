"""Programs that people already have: the calls that clients of Huozi, Aquila2 and LingoWhale make, as they make them.

The server is started as Huozi's guide starts vLLM: a served name, a template file that writes the roles it is given,
the role of the answers in Chinese, a limit of the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from leveret.engine.text import TextModel
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.serve.config import ServeConfig
from leveret.serve.running import running
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.save import save_model

BEGIN, END = "<|beginofutterance|>", "<|endofutterance|>"

TEMPLATE = """\
{% for message in messages %}
{{ '<|beginofutterance|>' + message['role'] + '\\n' + message['content'] }}
{% if not loop.last or add_generation_prompt %}{{ '<|endofutterance|>\\n' }}{% endif %}
{% endfor %}
{% if add_generation_prompt and messages[-1]['role'] != '助手' %}{{ '<|beginofutterance|>助手\\n' }}{% endif %}
""".replace("}\n{", "}{")
"""Huozi's: the role is written as the client sent it."""

STOP = 57001
"""Huozi's <|endofutterance|>; the tiny model has it elsewhere, and no id this large."""


@pytest.fixture(scope="module")
def huozi_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "huozi3.5"
    tokenizer = train_byte_bpe(
        ["系统：你是一个智能助手。用户：请介绍一下哈尔滨工业大学。助手：好的。"] * 4,
        vocab_size=340,
        special_tokens=["<s>", "</s>", BEGIN, END],
        bos_token="<s>",
        eos_token="</s>",
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Decoder(ModelConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **sizes))
    init_weights(model, 3)
    tokenizer.save(directory)
    save_model(model, directory)
    (directory / "template.jinja").write_text(TEMPLATE, "utf-8")
    return directory


@pytest.fixture(scope="module")
def huozi(huozi_dir: Path) -> TextModel:
    return TextModel.load(huozi_dir)


@pytest.fixture(scope="module")
def huozi_client(huozi: TextModel, huozi_dir: Path) -> Iterator[openai.OpenAI]:
    config = ServeConfig(
        model=str(huozi_dir),
        port=0,
        served_model_name="huozi",
        chat_template=huozi_dir / "template.jinja",
        response_role="助手",
        max_model_len=1024,
    )
    with running(huozi, config) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


def num_tokens(model: TextModel, text: str) -> int:
    return len(model.tokenizer.encode(text, allow_special=True))


def test_a_single_question_with_chinese_roles_and_a_stop_id(huozi_client: openai.OpenAI, huozi: TextModel) -> None:
    response = huozi_client.chat.completions.create(
        model="huozi",
        extra_body={"stop_token_ids": [STOP]},
        messages=[
            {"role": "系统", "content": "你是一个智能助手"},  # type: ignore[misc, list-item]
            {"role": "用户", "content": "请介绍一下哈尔滨工业大学。"},  # type: ignore[misc, list-item]
        ],
        max_tokens=30,
    )
    message = response.choices[0].message
    assert message.role == "助手" and isinstance(message.content, str) and END not in message.content
    prompt = f"{BEGIN}系统\n你是一个智能助手{END}\n{BEGIN}用户\n请介绍一下哈尔滨工业大学。{END}\n{BEGIN}助手\n"
    assert response.usage is not None and response.usage.prompt_tokens == num_tokens(huozi, prompt)


def test_a_chat_page_that_asks_for_the_name_first_and_streams_its_history(
    huozi_client: openai.OpenAI, huozi: TextModel
) -> None:
    name = huozi_client.models.list().data[0].id
    talk: list[Any] = [{"role": "系统", "content": "你是一个智能助手"}]
    for question in ("你好", "再说一遍"):
        talk.append({"role": "用户", "content": question})
        stream = huozi_client.chat.completions.create(
            model=name,
            messages=talk,
            temperature=0.8,
            stream=True,
            extra_body={"repetition_penalty": 1, "stop_token_ids": [STOP]},
            max_tokens=20,
            seed=1,
        )
        answer = ""
        for chunk in stream:
            answer += chunk.choices[0].delta.content or ""
        whole = huozi_client.chat.completions.create(
            model=name, messages=talk, temperature=0.8, seed=1, max_tokens=20, extra_body={"repetition_penalty": 1}
        )
        assert answer == whole.choices[0].message.content
        talk.append({"role": "助手", "content": answer})
    assert name == "huozi"


def test_english_role_names_ask_the_same(huozi_client: openai.OpenAI) -> None:
    texts = []
    for system, user in (("系统", "用户"), ("system", "user")):
        messages: list[Any] = [{"role": system, "content": "甲"}, {"role": user, "content": "乙"}]
        response = huozi_client.chat.completions.create(model="huozi", messages=messages, max_tokens=20)
        texts.append((response.choices[0].message.content, response.usage))
    assert texts[0] == texts[1]


def test_a_last_message_of_the_assistant_is_closed_or_continued(huozi_client: openai.OpenAI, huozi: TextModel) -> None:
    talk: list[Any] = [{"role": "用户", "content": "甲"}, {"role": "助手", "content": "好的"}]

    def prompt_tokens(**extra: bool) -> int:
        response = huozi_client.chat.completions.create(model="huozi", messages=talk, max_tokens=1, extra_body=extra)
        assert response.usage is not None
        return response.usage.prompt_tokens

    begun = f"{BEGIN}用户\n甲{END}\n{BEGIN}助手\n好的"
    assert prompt_tokens() == num_tokens(huozi, f"{begun}{END}\n")
    assert prompt_tokens(add_generation_prompt=False) == num_tokens(huozi, begun)
    assert prompt_tokens(add_generation_prompt=False, continue_final_message=True) == num_tokens(huozi, begun)


def test_the_context_is_as_long_as_asked_for(huozi_client: openai.OpenAI) -> None:
    assert huozi_client.models.retrieve("huozi").model_extra == {"max_model_len": 1024}
    with pytest.raises(openai.BadRequestError, match="1024") as caught:
        huozi_client.completions.create(model="huozi", prompt=[5] * 1030)
    assert caught.value.code == "context_length_exceeded"


def test_continuations_as_aquila_and_lingowhale_sample_them(huozi_client: openai.OpenAI, huozi: TextModel) -> None:
    aquila = huozi_client.completions.create(
        model="huozi", prompt="请给出", max_tokens=25, top_p=0.9, temperature=1.0, seed=123, extra_body={"top_k": 15}
    )
    options: dict[str, Any] = {"max_tokens": 25, "top_p": 0.9, "temperature": 1.0, "seed": 123, "top_k": 15}
    assert aquila.choices[0].text == huozi.generate("请给出", **options)
    lingowhale = huozi_client.completions.create(
        model="huozi", prompt="陆游《示儿》", max_tokens=25, extra_body={"repetition_penalty": 1.1}
    )
    assert lingowhale.choices[0].text == huozi.generate("陆游《示儿》", max_tokens=25, repetition_penalty=1.1)


def test_vllms_switches_for_stopping_and_special_tokens(huozi_client: openai.OpenAI, huozi: TextModel) -> None:
    end = huozi.tokenizer.id_of("</s>")
    request: dict[str, Any] = {"model": "huozi", "prompt": "甲", "max_tokens": 3, "logit_bias": {str(end): 100}}
    stopped = huozi_client.completions.create(**request).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("", "stop")
    extra: dict[str, Any] = {"ignore_eos": True}
    hidden = huozi_client.completions.create(**request, extra_body=extra).choices[0]
    assert (hidden.text, hidden.finish_reason) == ("", "length")
    shown = huozi_client.completions.create(**request, extra_body=extra | {"skip_special_tokens": False}).choices[0]
    assert (shown.text, shown.finish_reason) == (3 * "</s>", "length")
