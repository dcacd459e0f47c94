"""The engine runs a model: requests of token ids in, completions of token ids out; it knows no text.

`submit` takes a request at any time, and `step` goes on with all that are under way: the scheduler decides who is fed
what (scheduler.py), the runner feeds it (runner.py), and each row chooses its next id (sampler.py). `generate` and
`stream` do this for a caller who only wants results; they and a server that steps by itself share one engine, so that
each profits from what the others have read. Greedy results in fp32 do not depend on which requests run together, in
which order, on the size of a prefill chunk, on reuse or on preemptions.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from leveret.allocator import reuse_freed_blocks
from leveret.engine.backend import Backend
from leveret.engine.beside import Beside, refusal
from leveret.engine.blocks import BlockPool
from leveret.engine.config import DEFAULT_CACHE_BYTES, EngineConfig
from leveret.engine.draft import DraftModel, draft_model
from leveret.engine.graphs import Capture, capture_for
from leveret.engine.invariant import InvariantRunner
from leveret.engine.models import EngineModels
from leveret.engine.request import Request
from leveret.engine.row import Progress, Row
from leveret.engine.runner import Runner
from leveret.engine.scheduler import Scheduler, Turn
from leveret.engine.speculative import Guesser, Lookup, Speculation
from leveret.engine.stats import EngineStats
from leveret.engine.turns import choose, feed, num_wanted
from leveret.errors import ConfigError, RequestError
from leveret.kernels.likeliest import likeliest
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import PagedCache


class Engine(Backend):
    """KV-cached, batched generation over one model. Several threads may use it; one step runs at a time."""

    def __init__(
        self,
        model: Decoder,
        config: EngineConfig | None = None,
        *,
        draft: Decoder | None = None,
        context_tokens: int | None = None,
    ) -> None:
        """The engine neither moves the model nor changes its mode; its weights may change while no request runs.

        draft: a model that guesses, in place of the one that `config.draft_model` names.
        context_tokens: most tokens of a prompt and its answer together; None: what the model can hold.
        """
        reuse_freed_blocks()
        self._model = model
        self._config = config or EngineConfig()
        self._context_tokens = context_tokens or model.config.max_position_embeddings
        self._num_blocks = _num_blocks(model, self._config, self._context_tokens)
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._arrivals = 0
        self._models = EngineModels(model)
        self._runner: Runner | InvariantRunner | None = None
        self._capture: Capture | None = None
        """For as long as the model stays on its device: what went wrong is not tried again."""
        self._served: dict[int, Decoder] = {}
        """What the runner has."""
        self._scheduler = self._new_scheduler()
        self._speculation = self._new_speculation(draft or draft_model(model, self._config))

    @property
    def context_tokens(self) -> int:
        """Most tokens a prompt and its answer may have together."""
        return min(self._context_tokens, self._num_blocks * self._config.cache_block_tokens)

    @property
    def model(self) -> Decoder:
        """The model that it runs."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._model.config.vocab_size

    @property
    def stats(self) -> EngineStats:
        """What the engine has done and what it holds; may be read from any thread."""
        scheduler, pool, counts = self._scheduler, self._scheduler.pool, self._counts
        size = self._config.cache_block_tokens
        weight = self._model.embed_tokens.weight
        return EngineStats(
            waiting_requests=len(scheduler.waiting),
            running_requests=len(scheduler.running),
            capacity_tokens=pool.num_blocks * size,
            used_tokens=pool.num_held * size,
            kept_tokens=pool.num_kept * size,
            cache_bytes=pool.num_blocks * PagedCache.block_bytes(self._model.config, size, weight.dtype),
            submitted_requests=counts["submitted"],
            finished_requests=counts["finished"],
            cancelled_requests=counts["cancelled"],
            prompt_tokens=counts["prompt"],
            prefill_tokens=counts["prefill"],
            reused_tokens=counts["reused"] + scheduler.num_reused,
            generated_tokens=counts["generated"],
            preemptions=counts["preemptions"] + scheduler.num_preemptions,
            drafted_tokens=counts["drafted"],
            accepted_tokens=counts["accepted"],
            steps=counts["steps"],
        )

    def beside(self, model: Decoder) -> Beside:
        """Serve another model too, mostly this one under an adapter, in the same steps and from the same cache.

        Requests for it go to the backend that is returned; closing that gives the model up. ConfigError when the two
        cannot share a cache (`beside.refusal`).
        """
        if (why := refusal(self._model, model)) is not None:
            raise ConfigError(f"two models cannot share an engine: {why}", hint="give each an engine of its own")
        with self._lock:
            self._let_go()
            number = self._models.add(model)
        return Beside(self, model, number, give_up=partial(self._models.give_up, number))

    def submit(self, request: Request, *, model: int = 0) -> Row:
        """Take a request on; the steps that follow serve it. Raises RequestError when it cannot be served.

        model: the number of a model beside the engine's own (`Beside`).
        """
        self.check(request)
        with self._lock:
            if not self._models.serves(model):
                raise RequestError("the model of this request is served no longer", code="model_not_found")
            self._arrivals += 1
            row = Row(request, arrival=self._arrivals, salt=self._salt(request, model), model=model)
            self._scheduler.add(row)
            self._counts.update(submitted=1, prompt=len(request.prompt_ids))
            return row

    def cancel(self, *rows: Row) -> None:
        """End rows now; they report nothing more. Nothing happens to those that have ended."""
        with self._lock:
            for row in rows:
                if row.finish_reason is None:
                    row.finish_reason = "cancelled"
                    self._counts["cancelled"] += 1
                    self._leave(row)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Go on with all rows: feed those whose turn it is, choose an id for each that has read all of its own."""
        with self._lock:
            runner = self._ready()
            turns = self._scheduler.plan(self._speculation.guess)
            if not turns:
                return []
            runner.cache.clear(self._scheduler.fresh)
            wanted = [num_wanted(turn) for turn in turns]
            logits = runner([feed(turn) for turn in turns], wanted)
            self._counts["steps"] += 1
            return self._taken(turns, wanted, logits)

    def forget(self) -> None:
        """Reuse nothing that was computed before. Needed only after changes to weights that PyTorch cannot notice."""
        with self._lock:
            self._scheduler.pool.forget_all()

    def _limit(self) -> tuple[str, str]:
        if self.context_tokens == self._context_tokens:
            return super()._limit()
        return "KV cache", ", or give the cache more (cache_memory_mib)"

    def _taken(self, turns: Sequence[Turn], wanted: Sequence[int], logits: Tensor) -> list[Progress]:
        """Let the rows that have read all of their ids choose, and note what every row has read."""
        best = likeliest(logits) if any(turn.row.sampler.plain for turn in turns) else []
        progress, counts, at = [], self._counts, 0
        for turn, count in zip(turns, wanted, strict=True):
            row, first, at = turn.row, at, at + count
            if row.num_pending > 1 or not row.num_generated:
                counts["prefill"] += turn.count
            ids, right = list[int](), 0
            if count:
                with row.alone():
                    ids, right = choose(turn, logits, best, first)
            self._scheduler.fed(row, turn.count + right)
            if count:
                counts["generated"] += len(ids)
                counts["drafted"] += len(turn.draft)
                counts["accepted"] += right
                self._speculation.learn(row, len(turn.draft), right)
                progress.append(self._progress(row, ids))
        return progress

    def _leave(self, row: Row) -> None:
        self._scheduler.remove(row)
        self._speculation.drop(row)

    def _let_go(self) -> None:
        """Forget models that nobody needs."""
        self._models.let_go((*self._scheduler.running, *self._scheduler.waiting))

    def _progress(self, row: Row, ids: list[int]) -> Progress:
        if row.finish_reason is None:
            return Progress(row=row, ids=ids, completion=None)
        self._counts["finished" if row.error is None else "cancelled"] += 1
        self._leave(row)
        return Progress(row=row, ids=ids, completion=row.completion() if row.error is None else None)

    def _ready(self) -> Runner | InvariantRunner:
        """The runner of the models as they are. Between two requests they may have changed; then nothing is kept."""
        self._let_go()
        models = self._models.by_number
        if self._runner is None or (not self._scheduler.running and self._models.changed()):
            self._runner = self._new_runner(models)
            self._models.look(again=True)  # quantized Linears may have changed what they hold
            self._scheduler.pool.forget_all()
        elif self._served is not models:
            self._runner.serve(models)
            self._models.look(again=False)
        self._served = models
        return self._runner

    def _new_runner(self, models: Mapping[int, Decoder]) -> Runner | InvariantRunner:
        size = self._config.cache_block_tokens
        if self._config.batch_invariant:  # a step by the modules and one by a graph have not the same bits
            return InvariantRunner(models, num_blocks=self._num_blocks, block_tokens=size)
        device = self._model.embed_tokens.weight.device
        if self._capture is None or self._capture.device != device:
            self._capture = capture_for(device) if self._config.cuda_graphs else None
        return Runner(models, num_blocks=self._num_blocks, block_tokens=size, capture=self._capture)

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(
            BlockPool(self._num_blocks),
            block_tokens=self._config.cache_block_tokens,
            max_rows=self._config.max_rows,
            prefill_chunk_tokens=self._config.prefill_chunk_tokens,
            reuse=self._config.reuse_prefixes,
            reuse_answers=not self._config.batch_invariant,
        )

    def _new_speculation(self, draft: Decoder | None) -> Speculation:
        if self._config.batch_invariant:
            return Speculation([])
        guessers: list[Guesser] = [] if self._config.speculation is None else [Lookup()]
        if draft is not None:
            capacity = self._num_blocks * self._config.cache_block_tokens
            guessers.append(DraftModel(draft, vocab_size=self._model.config.vocab_size, capacity_tokens=capacity))
        return Speculation(guessers)

    def _salt(self, request: Request, model: int) -> bytes:
        """What else than the ids decides about keys and values: only requests alike in that share them.

        It is the model, and with dynamic NTK how long a request may become.
        """
        planned = len(request.prompt_ids) + request.params.max_tokens
        dynamic = self._model.config.rope.kind == "dynamic"
        return f"model {model}, {planned if dynamic else 'any'} tokens".encode()


def _num_blocks(model: Decoder, config: EngineConfig, longest: int) -> int:
    """Blocks of the cache: what the memory allows, and not more than all rows could ever use."""
    size = config.cache_block_tokens
    per_row = -(-longest // size)
    block_bytes = PagedCache.block_bytes(model.config, size, model.embed_tokens.weight.dtype)
    if config.cache_memory_mib is None:
        allowed = max(DEFAULT_CACHE_BYTES // block_bytes, per_row)
    else:
        allowed = max(1, (config.cache_memory_mib << 20) // block_bytes)
    return min(allowed, config.max_rows * per_row)
