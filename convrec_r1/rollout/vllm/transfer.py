"""Ways of weights from the trainer to vLLM servers."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.vllm.server import Server, ServerFault
from convrec_r1.rollout.weights import Named

MEMORY = Path("/dev/shm")


class Transfer(Protocol):
    backend: str
    """vLLM's name of its side."""
    lasting: bool
    """Whether what was published can be delivered at any later time, whatever the trainer has made of its weights since."""

    def publish(self, weights: Iterable[Named], version: str) -> None:
        """Take over a set of weights, to be delivered from here on."""
        ...

    def deliver(self, server: Server) -> None:
        """Give the published weights to one server. Raises ServerFault."""
        ...

    def withdraw_older(self) -> None:
        """Every server has the newest weights."""
        ...

    def close(self) -> None: ...


class FileTransfer:
    """Through one safetensors file a set, which stays until every server has the next."""

    backend = "convrec_file"
    lasting = True

    def __init__(self, folder: Path) -> None:
        """folder: servers must see it under the same name."""
        self.folder = folder
        self.files: list[Path] = []
        self.names: list[str] = []
        self.version = ""

    def publish(self, weights: Iterable[Named], version: str) -> None:
        # Copies: what a stream yields may live no longer than its turn, and two names may share their memory.
        copies = {name: weight.to("cpu", copy=True).contiguous() for name, weight in weights}
        path = self.folder / f"weights-{version}.safetensors"
        self.files.append(path)
        try:
            save_file(copies, path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"The weights for the vLLM servers could not be written to {self.folder} ({error}). Make room there, or name "
                "another folder by rollout.transfer_folder."
            ) from error
        self.names, self.version = list(copies), version

    def deliver(self, server: Server) -> None:
        path = self.files[-1]
        try:
            server.update({"path": str(path), "names": self.names}, self.version)
        except ServerFault as fault:
            raise type(fault)(
                f"it did not take the weights in {path}, which it must see under this name (rollout.transfer_folder): {fault}"
            ) from fault

    def withdraw_older(self) -> None:
        self._remove(self.files[:-1])
        self.files = self.files[-1:]

    def close(self) -> None:
        self._remove(self.files)
        self.files = []

    def _remove(self, files: Iterable[Path]) -> None:
        for path in files:
            path.unlink(missing_ok=True)


def scratch_folder(size: int, within: str | None) -> tempfile.TemporaryDirectory:
    """A folder for sets of weights of `size` bytes: in `within`, else in memory where that has room."""
    if within:
        Path(within).mkdir(parents=True, exist_ok=True)
    elif MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * size:  # two sets, and as much left to others
        within = str(MEMORY)
    folder = tempfile.TemporaryDirectory(prefix="convrec-r1-weights-", dir=within, ignore_cleanup_errors=True)
    if within:
        Path(folder.name).chmod(0o755)  # for servers that run under another name
    return folder
