"""One function from a plain network to one that is compiled, sharded or replicated: networks know nothing of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from workflows.config.schema import TrainConfig
from workflows.errors import InvalidConfig
from workflows.train.batches import Share


def parallelize(network: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """Compiles each block, then shards (FSDP2) or replicates (DDP) over the default process group.

    Args:
        network: on the CPU, with equal weights on all workers; its `blocks` are compiled and sharded one by one.
        config: `sharding`, `compile` and `precision`.
        device: of this worker.

    Returns:
        What to call in training; `unwrapped` gives the network back.
    """
    network.to(device)
    blocks = cast(nn.ModuleList, network.blocks)
    if config.activation_checkpointing:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if config.compile:
        for block in blocks:
            block.compile()
    if config.sharding == "ddp":
        return DistributedDataParallel(network, gradient_as_bucket_view=True)
    policy = MixedPrecisionPolicy()
    if compute_type(config, device) is torch.bfloat16:
        # Inputs stay as they are: a level of 999 is no bfloat16.
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.cpu_offload else OffloadPolicy()
    mesh = shard_mesh(config, device)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload)
    return cast(nn.Module, fully_shard(network, mesh=mesh, mp_policy=policy, offload_policy=offload))


def shard_mesh(config: TrainConfig, device: torch.device) -> DeviceMesh:
    """Workers in one row that shares the weights, or (hybrid) in rows of `shard_size` that each hold a copy.

    Raises:
        InvalidConfig: the number of workers is no multiple of `shard_size`.
    """
    size = dist.get_world_size()
    if config.sharding != "hybrid":
        return init_device_mesh(device.type, (size,))
    if size % config.shard_size:
        raise InvalidConfig(f"{size} workers do not divide into groups of shard_size {config.shard_size}")
    return init_device_mesh(
        device.type, (size // config.shard_size, config.shard_size), mesh_dim_names=("replicate", "shard")
    )


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DDP; FSDP shards in place."""
    return cast(nn.Module, network.module) if isinstance(network, DistributedDataParallel) else network


def synchronize(network: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Whether the next backward pass reduces gradients over the workers: false while they accumulate."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(wanted)
        return nullcontext()
    return nullcontext() if wanted else cast(Any, network).no_sync()


def compute_type(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The type of matrix products; `auto` takes bfloat16 only where the hardware multiplies it quickly."""
    if config.precision == "fp32":
        return torch.float32
    if config.precision == "bf16" or device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for the forward pass, or nothing."""
    kind = compute_type(config, device)
    return nullcontext() if kind is torch.float32 else torch.autocast(device.type, dtype=kind)


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its sharding; every worker must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_of_all(own: Tensor, share: Share, num_rows: int) -> Tensor:
    """The rows of all workers in the order of the global batch, with gradients to each worker's own.

    Args:
        own: this worker's rows, `(b, e)`.
        share: which they are.
        num_rows: of all workers, B.

    Returns:
        `(B, e)`; its gradient is the sum over the workers' losses.
    """
    if share.size == 1:
        return own
    everyone = own.new_zeros(num_rows, own.shape[1])
    everyone[share.rows] = own
    return cast(Tensor, _Sum.apply(everyone))


@final
class _Sum(torch.autograd.Function):
    """Sums over the workers, and the gradients of all workers' losses on the way back."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
