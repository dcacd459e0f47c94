"""Requests to the server that begin alike: what one has read, the next need not read again."""

from __future__ import annotations

import re
import urllib.request

import openai

SYSTEM = "You are a phone. Say what you do before you do it, and say it in the language of the question. " * 4


def reused(url: str) -> float:
    """The engine's counter, as Prometheus reads it."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    found = re.search(r"^leveret_engine_reused_tokens_total\{.*\} (\S+)$", text, re.M)
    assert found, text
    return float(found[1])


def ask(client: openai.OpenAI, question: str) -> str:
    answer = client.chat.completions.create(
        model="phone",
        messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        max_tokens=8,
        temperature=0,
    )
    return answer.choices[0].message.content or ""


def test_a_system_prompt_is_read_once_and_changes_no_answer(client: openai.OpenAI, url: str) -> None:
    first = ask(client, "Set a timer")
    before = reused(url)
    assert ask(client, "Call Alice")
    assert reused(url) - before > 200  # most of the system prompt
    assert ask(client, "Set a timer") == first
