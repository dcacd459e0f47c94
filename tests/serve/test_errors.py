"""Bad requests: always OpenAI's error object, the right status, the field's name; never a 422, never a traceback."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from leveret.engine.text import TextModel
from leveret.serve.config import ServeConfig
from leveret.serve.running import running

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def called_with(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


def declared_with(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


HUGE = {"properties": {f"p{number}": {} for number in range(5001)}}


def send(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": True}]}, "messages[0].tool_calls"),
        ({"messages": [called_with("[" * 100_000)]}, "messages[0].tool_calls[0]"),
        ({"messages": [called_with('{"a": NaN}')]}, "messages[0].tool_calls[0]"),
        ({"messages": [called_with('{"a": 1e999}')]}, "messages[0].tool_calls[0]"),
        ({"messages": [called_with('{"a": "\\ud83d"}')]}, "messages"),
        ({"guided_json": "[" * 100_000}, "guided_json"),
        ({"guided_regex": "\ud83d"}, "guided_regex"),
        ({"\ud83d": 1}, None),
        ({"tools": [declared_with({"properties": {"\ud83d": {}}})]}, "tools[0].function.parameters.properties"),
        ({"tools": [declared_with({"description": "\ud83d"})]}, "tools[0].function.parameters.description"),
        ({"tools": [declared_with({"minimum": -float("inf")})]}, "tools[0].function.parameters.minimum"),
        ({"tools": [declared_with(HUGE)]}, "tools[0].function.parameters"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 100_000}, "max_completion_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": f"f{place}"}} for place in range(1025)]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": "all", "tool_choice": "always"}, "tool_choice"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"logit_bias": {"a": 5}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids[0]"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"temprature": 1}, "temprature"),
        ({"prompt": "hi"}, "prompt"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"prediction": {"type": "content", "content": "a"}}, "prediction"),
        (
            {"messages": [{"role": "assistant", "content": None, "function_call": "f"}]},
            "messages[0].function_call",
        ),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "call Alice " * 2000}]}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_chat_request_is_a_400_that_names_the_field(
    url: str, changes: dict[str, Any], param: str | None, stream: bool
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 4} | ({"stream": True} if stream else {}) | changes
    if stream and "stream_options" in changes:
        return
    status, content = send(url, "POST", CHAT, json.dumps(body).encode())
    assert status == 400, content
    error = content["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param and error["message"]


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("tool_choice", {"type": "function", "name": "x"}, "tool_choice.function"),
        ("tool_choice", {"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.allowed_tools"),
        ("tools", [{"type": "function", "name": "x", "parameters": {}}], "tools[0].function"),
    ],
)
def test_tools_as_the_responses_api_writes_them_are_told_how_a_chat_does(
    url: str, field: str, value: object, place: str
) -> None:
    status, content = send(url, "POST", CHAT, json.dumps({"messages": MESSAGES, field: value}).encode())
    assert status == 400 and content["error"]["param"] == place
    assert "here" in content["error"]["message"] and "inside: {" in content["error"]["message"]


def test_unknown_fields_come_with_a_suggestion(url: str) -> None:
    _, content = send(url, "POST", CHAT, json.dumps({"messages": MESSAGES, "temprature": 1}).encode())
    assert "did you mean 'temperature'?" in content["error"]["message"]
    assert content["error"]["code"] == "unknown_parameter"
    _, content = send(url, "POST", CHAT, json.dumps({"prompt": "a"}).encode())
    assert "a text goes to /v1/completions" in content["error"]["message"]
    inner = {"tools": [{"type": "function", "function": {"name": "f", "paramters": {}}}]}
    _, content = send(url, "POST", CHAT, json.dumps({"messages": MESSAGES, **inner}).encode())
    assert content["error"]["param"] == "tools[0].function.paramters"
    assert content["error"]["code"] == "unknown_parameter"
    assert "did you mean 'parameters'?" in content["error"]["message"]


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/responses", "/v1/chat/completions"),
        ("/v1/v1/completions", "/v1/completions"),
    ],
)
def test_a_path_where_nothing_is_tells_where_texts_are_generated(url: str, path: str, way: str) -> None:
    status, content = send(url, "POST", path, json.dumps({"messages": MESSAGES}).encode())
    assert status == 404 and way in content["error"]["message"].partition("hint:")[2]


def test_fields_that_ask_for_nothing_are_taken(url: str) -> None:
    nothing = {"top_logprobs": 0, "logprobs": False, "audio": None, "prediction": None, "web_search_options": None}
    said = {**MESSAGES[0], "role": "assistant", "content": "x", "function_call": None, "tool_calls": None}
    body = {"messages": [MESSAGES[0], said, MESSAGES[0]], "max_tokens": 2, **nothing}
    assert send(url, "POST", CHAT, json.dumps(body).encode())[0] == 200


def test_over_long_prompts_name_the_numbers(url: str) -> None:
    body = {"prompt": [5] * 3000, "max_tokens": 4}
    status, content = send(url, "POST", "/v1/completions", json.dumps(body).encode())
    assert status == 400 and content["error"]["code"] == "context_length_exceeded"
    assert "3000" in content["error"]["message"] and "2048" in content["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'"x"', b"[" * 100_000])
def test_bodies_that_are_not_json_objects_are_400(url: str, body: bytes) -> None:
    status, content = send(url, "POST", CHAT, body)
    assert status == 400 and content["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("prompt", [[], None, 5, [[]], [[-1]], [999_999], ["a", 1], "\ud83d"])
def test_bad_prompts_are_400(url: str, prompt: object) -> None:
    status, content = send(url, "POST", "/v1/completions", json.dumps({"prompt": prompt}).encode())
    assert status == 400 and content["error"]["param"].startswith("prompt"), content


def test_too_many_prompts_are_refused_before_any_work(url: str) -> None:
    status, content = send(url, "POST", "/v1/completions", json.dumps({"prompt": ["a"] * 10_000}).encode())
    assert status == 400 and "128 prompts, not 10000" in content["error"]["message"]


def test_harmless_fields_are_accepted(url: str) -> None:
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "logprobs": False, "presence_penalty": 0.0}
    harmless |= {"logit_bias": {}, "top_k": -1, "top_p": 1, "best_of": 1, "min_tokens": 0, "use_beam_search": False}
    nulls = dict.fromkeys(["stop", "seed", "response_format", "tools", "logit_bias", "top_p", "n"])
    body = {"messages": MESSAGES, "max_tokens": 2, "response_format": {"type": "text"}} | harmless | nulls
    status, content = send(url, "POST", CHAT, json.dumps(body).encode())
    assert status == 200, content


def test_wrong_model_path_and_method(url: str) -> None:
    status, content = send(url, "POST", CHAT, json.dumps({"model": "gpt-9", "messages": MESSAGES}).encode())
    assert (status, content["error"]["code"], content["error"]["param"]) == (404, "model_not_found", "model")
    status, content = send(url, "GET", "/v1/nothing")
    assert status == 404 and content["error"]["code"] == "not_found"
    status, content = send(url, "GET", CHAT)
    assert status == 405 and content["error"]["code"] == "method_not_allowed"


def test_health_answers_and_no_page_elsewhere_may_read_us(url: str) -> None:
    status, content = send(url, "GET", "/health")
    assert status == 200 and content["status"] == "ok"
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in connection.getresponse().headers
    connection.close()


def test_keys_body_limits_and_names_of_a_guarded_server(model: TextModel) -> None:
    config = ServeConfig(model="x", port=0, api_key="secret", max_body_bytes=200, served_model_name="mine")
    body = json.dumps({"model": "mine", "messages": MESSAGES, "max_tokens": 2}).encode()
    with running(model, config) as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secrét".encode().decode("latin-1")}):
            status, content = send(url, "POST", CHAT, body, **headers)
            assert status == 401 and content["error"]["code"] == "invalid_api_key"
        assert send(url, "GET", "/v1/models")[0] == 401
        assert send(url, "GET", "/health")[0] == 200
        key = {"Authorization": "Bearer secret"}
        assert send(url, "POST", CHAT, body, **key)[0] == 200
        status, content = send(url, "POST", CHAT, body + b" " * 300, **key)
        assert status == 413 and content["error"]["code"] == "request_too_large"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError), client:
            client.models.list()


def test_a_failing_model_is_a_500_that_tells_no_internals(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret internals")

    body = {"messages": MESSAGES, "max_tokens": 4}
    with running(model, ServeConfig(model="x", port=0)) as url:
        with monkeypatch.context() as patch:
            patch.setattr(model.model, "hidden", explode)
            status, content = send(url, "POST", CHAT, json.dumps(body).encode())
            assert status == 500 and content["error"]["type"] == "server_error"
            assert "secret" not in content["error"]["message"]
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
            with pytest.raises(openai.APIError), client:
                list(client.chat.completions.create(model=model.name, stream=True, **body))
        assert send(url, "POST", CHAT, json.dumps(body).encode())[0] == 200  # and it goes on serving


def test_a_full_queue_is_a_429_and_what_never_fits_a_400(model: TextModel) -> None:
    config = ServeConfig(model="x", port=0, page=False, max_concurrent_requests=1, max_waiting_requests=0)
    with running(model, config) as url:
        body = {"messages": MESSAGES, "max_tokens": 2, "n": 2}
        status, content = send(url, "POST", CHAT, json.dumps(body).encode())
        assert status == 400 and content["error"]["param"] == "n"
        body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body))
        connection.getresponse().readline()
        status, content = send(url, "POST", CHAT, json.dumps({"messages": MESSAGES, "max_tokens": 2}).encode())
        assert status == 429 and content["error"]["code"] == "overloaded"
        connection.close()
