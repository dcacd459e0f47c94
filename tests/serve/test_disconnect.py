"""A client that goes away stops its generation, and nobody else notices."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from leveret.engine.text import TextModel

from .test_guard import metrics

CANCELLED = 'leveret_engine_cancelled_requests_total{model="phone"}'
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1500, "ignore_eos": True}


def running_jobs(url: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/health")
    count: int = json.loads(connection.getresponse().read())["running"]
    connection.close()
    return count


def wait_for(url: str, count: int, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while running_jobs(url) != count:
        assert time.monotonic() < deadline, f"{running_jobs(url)} jobs are running, not {count}"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place_at_once(
    url: str, model: TextModel, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, hidden = [], model.model.hidden

    def slow_hidden(*args: object, **kwargs: object) -> object:
        steps.append(1)
        time.sleep(0.003)
        return hidden(*args, **kwargs)

    monkeypatch.setattr(model.model, "hidden", slow_hidden)
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(BODY | {"stream": stream}))
        if stream:
            response = connection.getresponse()
            assert response.readline().startswith(b"data: ")
            response.close()
        wait_for(url, 1)
        while not steps:  # a request under way holds room from its first step
            time.sleep(0.001)
        assert held_tokens(url) > 0
        before = metrics(url)[CANCELLED]
    wait_for(url, 0)
    assert len(steps) < 1500
    assert held_tokens(url) == 0 and metrics(url)[CANCELLED] == before + 1


def held_tokens(url: str) -> float:
    """Room that answers under way take in the cache."""
    return metrics(url)['leveret_engine_used_tokens{model="phone"}']
