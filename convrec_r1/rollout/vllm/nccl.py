"""Weights from the trainer's GPU to the servers' by NCCL, over vLLM's own transfer engine.

Written against vLLM 0.32's interfaces and never run: it takes two GPUs, and none was at hand.
"""

# vLLM is optional.
# pyright: reportMissingImports=none

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_ip

from convrec_r1.rollout.vllm.process import free_port
from convrec_r1.rollout.vllm.server import Server
from convrec_r1.rollout.weights import Named


class NcclTransfer(WeightSource):
    """A process group a server, the trainer its first member. For a trainer of one process.

    Nothing is kept: a delivery reads the policy as it is, so it comes too late once the trainer trains on.
    """

    backend = "nccl"

    def __init__(self, stream: Callable[[], Iterator[Named]], device: torch.device, *, lasting: bool) -> None:
        """stream: the policy's weights, from the first to the last.  lasting: they change in syncs' sight only."""
        self.stream, self.device, self.lasting = stream, device, lasting
        self.version = ""
        self._described: list[ParamMeta] = []
        self._engines: weakref.WeakKeyDictionary[Server, TrainerWeightTransferEngine] = weakref.WeakKeyDictionary()

    def publish(self, weights: Iterable[Named], version: str) -> None:
        self._described = [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in weights]
        self.version = version

    def deliver(self, server: Server) -> None:
        torch.cuda.set_device(self.device)  # threads start with the first
        if server not in self._engines:
            here = "127.0.0.1" if "://127.0.0.1:" in server.address else get_ip()
            workers = int(server.get("/get_world_size")["world_size"])
            self._engines[server] = WeightTransferTrainerFactory.trainer_init(
                NCCLTrainerInitInfo(here, free_port(), 1 + workers, rank=0), client=_Client(server, self), source=self
            )
        self._engines[server].send_weights()

    def withdraw_older(self) -> None:
        pass

    def close(self) -> None:
        for engine in self._engines.values():
            engine.shutdown()
        self._engines.clear()

    def metadata(self) -> list[ParamMeta]:
        return self._described

    def __iter__(self) -> Iterator[Named]:
        return self.stream()


class _Client:
    """A server as vLLM's transfer engine calls it (`VLLMWeightSyncClient`)."""

    def __init__(self, server: Server, transfer: NcclTransfer) -> None:
        self.server, self.transfer = server, transfer

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.server.post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self.server.start_update()

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self.server.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.server.finish_update(weight_version or self.transfer.version)
