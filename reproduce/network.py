"""The network of a pretraining, on this machine's device, and the runtime options that this machine must support."""

from typing import Any

import torch
from omegaconf import DictConfig

from models.methods import registry
from models.networks.trunk import Trunk
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.engine.batchnorm import validate_sync_batchnorm
from reproduce.engine.distributed.collectives import device
from reproduce.engine.precision import autocast
from reproduce.errors import UserError, did_you_mean


def validate_runtime_options(cfg: DictConfig) -> None:
    """Raise `UserError` if this machine does not support precision, BatchNorm, compiler or checkpointing options."""
    autocast(cfg.precision)
    validate_sync_batchnorm(cfg.cluster.sync_batchnorm)
    if cfg.cluster.sync_batchnorm == "apex" and cfg.precision == "bf16":
        raise UserError(
            "cluster.sync_batchnorm=apex does not work with precision=bf16: apex's kernels have fp32 and fp16; use "
            "cluster.sync_batchnorm=torch"
        )
    backend, valid = cfg.cluster.compile_backend, torch.compiler.list_backends(exclude_tags=())
    if backend and backend not in valid:
        raise UserError(f"unknown cluster.compile_backend {backend!r}: {did_you_mean(backend, valid)}")
    if cfg.cluster.activation_checkpointing and cfg.cluster.sync_batchnorm == "apex":
        raise UserError(
            "cluster.activation_checkpointing runs each block's forward pass twice, and apex's SyncBatchNorm would "
            "count its batch twice: use cluster.sync_batchnorm=torch"
        )
    if cfg.cluster.activation_checkpointing and backend:
        raise UserError("cluster.activation_checkpointing does not work with cluster.compile_backend: use one of them")


def build_network(cfg: DictConfig, method_config: Any = None, num_classes: int = 0) -> Trunk:
    """Build the network with its seeded initial weights, on the device; `method_config` is None for method `none`."""
    torch.manual_seed(cfg.seed)
    net = registry.build_network(to_dataclass(cfg.network, Network, "network"), method_config, num_classes)
    net.set_normalization(cfg.normalize.mean, cfg.normalize.std)
    net = net.to(device()).to(memory_format=torch.channels_last)
    net.activation_checkpointing = cfg.cluster.activation_checkpointing
    if cfg.cluster.compile_backend:
        net.compile(backend=cfg.cluster.compile_backend)
    return net
