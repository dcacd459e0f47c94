"""One token of each row as a CUDA graph: a GPU is told once what a step launches, and then only to do it again.

On a GPU a step of decoding is some hundred small kernels, each started from Python, and a small model waits for Python.
A graph is the list of these launches with their memory, recorded once (`Capture`), and started as one.

It does the same work on the same memory, so a step for it has a fixed shape and reads everything from fixed buffers
(model/static_rows.py): there is a graph for each model, power of two of rows, and power of two of blocks that the
longest row reads. Missing rows are padding, which writes to a spare block of the cache.

    copy the feeds into the buffers -> replay -> copy the logits out

A graph is recorded while its buffers hold padding alone, and its first real step is computed by the model as well: had
a number of that moment been recorded instead of where it lies, the logits would differ. If recording or replaying
fails, or the logits differ by more than TOLERANCE, a warning says so and the engine goes on without graphs for good.

It is for steps in which each sequence brings one token, and models of plain parts (`refusal`): a mixture asks the GPU
which experts are chosen; quantized weights may free what they were written out to. All else goes on as without.

No GPU has run this yet. The tests put a function in the place of a graph; `CudaCapture` itself has never been executed.
An error that breaks the CUDA context (an illegal address) ends everything, as always: `engine.cuda_graphs=false`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from leveret.model.attention import SelfAttention
from leveret.model.decoder import Decoder, DecoderLayer
from leveret.model.feed_forward import FeedForward
from leveret.model.linear import Linear
from leveret.model.lora import LoraLinear
from leveret.model.norm import RMSNorm
from leveret.model.paged_cache import Feed, PagedCache
from leveret.model.static_rows import StaticBuffers, StaticRows, blocks_read

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Most that a logit may differ from the model's own step, as a share of the largest: padded rows and blocks make for
other kernels, which add in another order."""

MOST_ROWS = 256
"""A step of more rows has so much to compute that launches do not count."""

FEWEST_BLOCKS = 8
"""Shorter tables are padded to this: it costs little and saves graphs."""

MOST_GRAPHS = 128
"""Of all models together. Each holds some megabytes, and recording one takes as long as a few steps."""

WARM_UPS = 2
"""Steps on the stream that records, before it does: libraries make their plans and get their memory then."""

PLAIN = (
    *(Decoder, DecoderLayer, SelfAttention, FeedForward, RMSNorm, LoraLinear, Linear),
    *(nn.Linear, nn.Embedding, nn.ModuleList),
)
"""Modules that were read through: they never wait for the GPU, and keep no memory but their parameters."""


class Capture(ABC):
    """Makes something to be replayed of a step on `device`, until that has failed once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.given_up = False

    @abstractmethod
    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does again all that `step` does, on the memory that it does it on now."""

    def give_up(self, reason: str) -> None:
        """Record nothing more, and say why."""
        if not self.given_up:
            logger.warning("CUDA graphs are off, each token is computed without them: %s", reason)
        self.given_up = True


class CudaCapture(Capture):
    """By torch.cuda.CUDAGraph; all graphs share one pool of memory, which is right as none runs beside another."""

    _one_at_a_time: ClassVar[threading.Lock] = threading.Lock()
    """A process records one graph at a time; engines have threads of their own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream: torch.cuda.Stream | None = None
        self._living: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Warm up and record on a stream of its own; the replay is on the caller's."""
        device = self.device
        with self._one_at_a_time, torch.cuda.device(device):
            self._stream = stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # also where recording fails, the caller's stream is then back in its place
                for _ in range(WARM_UPS):
                    step()
                graph = torch.cuda.CUDAGraph()
                pool = next((each.pool() for each in self._living), None)  # only a pool in use may be named
                # Other threads (another model, a training run) may ask for memory meanwhile.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
        self._living.add(graph)

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay


def capture_for(device: torch.device) -> Capture | None:
    """The capture for models on this device, where there are graphs."""
    return CudaCapture(device) if device.type == "cuda" else None


class StaticStep:
    """One token of up to `num_rows` rows, from buffers to logits; `run` is what a graph records."""

    def __init__(self, model: Decoder, buffers: StaticBuffers, logits: Tensor) -> None:
        """`logits`: where they go, (R, V)."""
        self.model = model
        self.buffers = buffers
        self.trusted = False
        """Its replay was compared with the model's own step."""
        self.replay: Callable[[], None] = self.run
        self._logits = logits
        self._held: object = None

    def run(self) -> None:
        """What the buffers say -> `logits`."""
        rows = StaticRows(self.buffers)
        self._logits.copy_(self.model.lm_head(self.model.hidden(rows.ids, cache=rows)[0]))

    def record(self, capture: Capture) -> None:
        """Run once, then let `replay` be what the capture makes of it."""
        self.run()
        self._held = self.model.rope.frequencies  # no parameter: the model may let go of it
        self.replay = capture.record(self.run)

    def __call__(self, feeds: Sequence[Feed]) -> Tensor:
        """Feed one token each; the logits after them, (len(feeds), V), which are the caller's."""
        self.buffers.fill(feeds)
        self.replay()
        return self._logits[: len(feeds)].clone()


class DecodeGraphs:
    """The graphs of models that share a cache."""

    def __init__(self, cache: PagedCache, capture: Capture, *, spare: int) -> None:
        """`spare`: a block of the cache that no sequence has."""
        cache.clear([spare])
        self._cache, self._capture, self._spare = cache, capture, spare
        self._models: dict[int, Decoder] = {}
        self._steps: dict[tuple[int, int, int], StaticStep] = {}
        """By the number of the model, rows and blocks."""
        self._logits: dict[int, Tensor] = {}
        """By rows: graphs never run at the same time, and each step's logits are copied."""

    def serve(self, models: Mapping[int, Decoder]) -> None:
        """From now on feed these; the graphs of others are dropped."""
        self._models = {}
        for number, model in models.items():
            if (why := refusal(model, self._cache)) is None:
                self._models[number] = model
            else:
                logger.info("model %d has no CUDA graphs: %s", number, why)
        kept = self._models
        self._steps = {key: step for key, step in self._steps.items() if kept.get(key[0]) is step.model}

    def __call__(self, model: int, feeds: Sequence[Feed], by_modules: Callable[[], Tensor]) -> Tensor:
        """Feed one token each; the logits after them. by_modules: the same by the model itself."""
        if (key := self._key(model, feeds)) is None:
            return by_modules()
        try:
            logits, step = self._replayed(key, feeds)
        except Exception as error:
            self._give_up(f"{key[1]} rows of {key[2]} blocks: {type(error).__name__}: {error}")
            return by_modules()
        if step.trusted:
            return logits
        expected = by_modules()  # afterwards: what the cache then holds of these tokens is right
        if (why := difference(logits, expected)) is not None:
            self._give_up(f"{key[1]} rows of {key[2]} blocks: {why}")
        step.trusted = True
        return expected

    def _key(self, model: int, feeds: Sequence[Feed]) -> tuple[int, int, int] | None:
        """Which graph is for these feeds; None: none."""
        if self._capture.given_up or model not in self._models or len(feeds) > MOST_ROWS:
            return None
        if any(len(feed.ids) != 1 for feed in feeds):
            return None
        longest = max(len(blocks_read(feed, self._cache)) for feed in feeds)
        key = (model, _power_of_two(len(feeds)), max(FEWEST_BLOCKS, _power_of_two(longest)))
        return key if key in self._steps or len(self._steps) < MOST_GRAPHS else None

    def _replayed(self, key: tuple[int, int, int], feeds: Sequence[Feed]) -> tuple[Tensor, StaticStep]:
        step = self._steps.get(key)
        if step is None:
            step = self._new_step(*key)
            step.record(self._capture)
            self._steps[key] = step
        return step(feeds), step

    def _new_step(self, model: int, num_rows: int, num_blocks: int) -> StaticStep:
        decoder = self._models[model]
        buffers = StaticBuffers(self._cache, num_rows=num_rows, num_blocks=num_blocks, spare=self._spare)
        if num_rows not in self._logits:
            weight = decoder.embed_tokens.weight
            self._logits[num_rows] = weight.new_empty(num_rows, decoder.config.vocab_size)
        return StaticStep(decoder, buffers, self._logits[num_rows])

    def _give_up(self, reason: str) -> None:
        self._capture.give_up(reason)
        self._steps.clear()
        self._logits.clear()


def refusal(model: Decoder, cache: PagedCache) -> str | None:
    """Why a step of this model is not for a graph; None when it is."""
    device, dtype = cache.keys[0].device, cache.keys[0].dtype
    if dtype not in TOLERANCE:
        return f"it is in {dtype}"
    if model.training:
        return "it is being trained"
    for name, module in model.named_modules():
        if type(module) not in PLAIN:
            return f"{name} is a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{name or 'it'} has a hook"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.device != device:
            return f"{name} is a {type(tensor).__name__} on {tensor.device}, the cache on {device}"
    return None


def difference(found: Tensor, expected: Tensor) -> str | None:
    """How far logits are from those that were expected, in words; None when that is within TOLERANCE."""
    largest = float(expected.float().abs().max())
    off = float((found.float() - expected.float()).abs().max())
    allowed = TOLERANCE[expected.dtype] * largest
    if off <= allowed:
        return None
    return f"a logit differs by {off:.3g} from the model's own step, where {allowed:.3g} is the most"  # or by NaN


def _power_of_two(number: int) -> int:
    """The next one that is not smaller."""
    return 1 << (number - 1).bit_length()
