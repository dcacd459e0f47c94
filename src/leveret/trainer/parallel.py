"""Many devices: the model is placed on this process's device, whole or as a share, from outside and for a while.

    ddp    every process holds the whole model; gradients are summed once a step (adamw.py, world.py)
    fsdp   every process holds 1 / W of each parameter; a layer is gathered before it is used, and its gradient is
           summed and cut up again behind it (PyTorch's FSDP2; ZeRO-3, or ZeRO-2 with `reshard: false`)
    hsdp   fsdp within groups of `shard_size` processes that lie close together, ddp between the groups

The decoder knows nothing of it. `fully_shard` hangs hooks on its layers and replaces its parameters by shares; when the
block ends, the hooks are gone and process 0 has a whole model of plain tensors again, to save.

Gradients are *summed*, never averaged: the loss is divided by the trained tokens of the whole step, counted over all
processes before the first forward pass (step.py). So it does not matter how many tokens fall to which process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from leveret.console import Console
from leveret.errors import ConfigError
from leveret.trainer.config import TrainingConfig
from leveret.trainer.deepspeed import read_deepspeed
from leveret.trainer.deepspeed_places import same
from leveret.trainer.parallel_config import ParallelConfig
from leveret.trainer.world import World

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@contextlib.contextmanager
def placed(model: nn.Module, config: TrainingConfig, world: World, console: Console) -> Iterator[None]:
    """Within the block, `model` is where `config` wants it; afterwards process 0 has it whole, in `config.precision`.

    The model's `hidden` and `layers` are what is used of it. After an error in the block, the model is of no use.
    """
    if config.deepspeed is not None:
        settings = read_deepspeed(config.deepspeed)
        for line in settings.unmapped:
            console.warn(f"{config.deepspeed}: not taken over: {line}")
        for key, value in settings.defaults.items():
            if same(getattr(config, key), value):
                console.info(f"{config.deepspeed}: says no {key}; as DeepSpeed: {value}")
    if world.size > 1:
        world.refuse_difference({"start model": _checksum(model)})
    if not (world.is_group and config.parallel.is_sharded):
        if world.is_group:
            console.info(f"{world.size} processes on {world.device.type}, each with the whole model (ddp)")
        model.to(world.device)
        yield
        return
    mesh = mesh_of(config.parallel, world)
    console.info(f"{world.size} processes on {world.device.type}, {_described(mesh)}")
    before = _without_hooks(model)
    dtype = DTYPES[config.precision]
    _shard(model, config, mesh, dtype)
    yield
    _gather(model, world, dtype)
    for module, (kind, attributes) in before.items():
        kept = {name: vars(module)[name] for name in _CONTENTS}
        module.__class__ = kind
        vars(module).clear()
        vars(module).update(attributes | kept)
    model.to("cpu")  # the buffers


def computes_on(model: nn.Module) -> torch.device:
    """Where the products of a model with a `norm` are made; with `offload`, its shares lie in the host's memory."""
    weight = model.get_parameter("norm.weight")
    mesh = getattr(weight, "device_mesh", None)
    return weight.device if mesh is None else torch.device(mesh.device_type)


def mesh_of(parallel: ParallelConfig, world: World) -> DeviceMesh:
    """(shard,) for fsdp, (replicate, shard) for hsdp. ConfigError when the processes do not make whole groups."""
    if parallel.mode == "fsdp":
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    assert world.ranks is not None
    size = parallel.shard_size or world.ranks.local_world_size
    if world.size % size:
        raise ConfigError(
            f"parallel.shard_size is {size}, but {world.size} processes cannot be cut into groups of {size}",
            hint="choose a divisor of the number of processes, or mode: fsdp",
        )
    return init_device_mesh(world.device.type, (world.size // size, size), mesh_dim_names=("replicate", "shard"))


_CONTENTS = ("_parameters", "_buffers", "_modules", "training")
"""What of a module's attributes is its content and not its wrapping."""


def _without_hooks(model: nn.Module) -> dict[nn.Module, tuple[type[nn.Module], dict[str, object]]]:
    """Class and attributes of every module as they are now, but for their contents."""
    return {
        module: (
            type(module),
            {
                name: value.copy() if isinstance(value, dict) else value
                for name, value in vars(module).items()
                if name not in _CONTENTS
            },
        )
        for module in model.modules()
    }


def _shard(model: nn.Module, config: TrainingConfig, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ConfigError(
            f"parallel.mode {config.parallel.mode} needs a newer PyTorch than {torch.__version__}",
            hint="upgrade torch, or use mode: ddp",
        )
    for parameter in model.parameters():  # trained ones stay fp32 and are the masters; the others only compute
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if config.parallel.offload and mesh.device_type == "cuda" else OffloadPolicy()
    layers = model.get_submodule("layers")
    for part in (*layers.children(), model):
        # The root is needed again at once: its head begins the backward pass.
        keep = part is not model and config.parallel.reshard
        fully_shard(part, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=keep)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            # Tokens of one process may leave an expert alone that another's visit: all must send the same.
            module.set_reduce_scatter_unused_params(True, recurse=False)


def _gather(model: nn.Module, world: World, dtype: torch.dtype) -> None:
    """Plain parameters again: whole ones on the CPU in process 0, empty ones elsewhere."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    whole: dict[int, nn.Parameter] = {}  # tied ones are gathered once and stay tied
    for owner in model.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in whole:
                tensor = _whole(parameter.detach(), world)
                tensor = tensor.to(dtype).cpu() if world.is_main else tensor.new_empty(0, device="cpu")
                whole[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            owner._parameters[name] = whole[id(parameter)]


def _whole(tensor: Tensor, world: World) -> Tensor:
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    there: DTensor = tensor.to(world.device)  # type: ignore[assignment]
    return there.full_tensor()


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the integers that its bits are read as."""


def _checksum(model: nn.Module) -> int:
    """A number that two models share when they have the same weights.

    The sum of their bits: a sum of floats has other last bits on a machine with more threads or an older processor.
    """
    words = (parameter.detach().flatten().view(_BITS[parameter.element_size()]) for parameter in model.parameters())
    return sum(int(each.sum(dtype=torch.int64)) for each in words)


def _described(mesh: DeviceMesh) -> str:
    if mesh.ndim == 1:
        return f"each with 1/{mesh.size()} of the model (fsdp)"
    return f"{mesh.size(0)} copies of the model, each shared by {mesh.size(1)} (hsdp)"
