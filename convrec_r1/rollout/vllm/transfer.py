"""Weights on their way from the trainer to vLLM servers, through a file that both sides see."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.checksums import Named
from convrec_r1.rollout.vllm.server import Server, ServerFault

MEMORY = Path("/dev/shm")


class FileTransfer:
    """One safetensors file for each sync. It stays until every server has the next one."""

    def __init__(self, folder: Path) -> None:
        """folder: under the same path for trainer and servers."""
        self.folder = folder
        self.files: list[Path] = []
        self.names: list[str] = []
        self.version = ""

    def publish(self, weights: Iterable[Named], version: str) -> None:
        """Write the weights. Raises UserError if the folder has no room."""
        # Copies: a streamed tensor may be valid for its turn only, and two names may share memory.
        copies = {name: weight.to("cpu", copy=True).contiguous() for name, weight in weights}
        path = self.folder / f"weights-{version}.safetensors"
        self.files.append(path)
        try:
            save_file(copies, path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"The weights for the vLLM servers could not be written to {self.folder} ({error}). Make room there, or choose "
                "another folder with rollout.transfer_folder."
            ) from error
        self.names, self.version = list(copies), version

    def deliver(self, server: Server) -> None:
        """Have a server load the published weights. Raises ServerFault."""
        path = self.files[-1]
        try:
            server.update({"path": str(path), "names": self.names}, self.version)
        except ServerFault as fault:
            raise type(fault)(
                f"it did not load the weights in {path}, which it must see under this path (rollout.transfer_folder): {fault}"
            ) from fault

    def keep(self, newest: int) -> None:
        """Remove all weights but the `newest` last ones: 1 once every server has those, 0 at the end."""
        while len(self.files) > newest:
            self.files.pop(0).unlink(missing_ok=True)


def scratch_folder(size: int, within: str | None) -> tempfile.TemporaryDirectory:
    """Create a folder for weights of `size` bytes: in `within`, else in memory if there is room, else on disk."""
    if within:
        Path(within).mkdir(parents=True, exist_ok=True)
    elif MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * size:  # two sets, and as much for others
        within = str(MEMORY)
    folder = tempfile.TemporaryDirectory(prefix="convrec-r1-weights-", dir=within, ignore_cleanup_errors=True)
    if within:
        Path(folder.name).chmod(0o755)  # for servers of another user
    return folder
