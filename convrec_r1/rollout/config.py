"""Options of rollouts and their engines: conf/rollout."""

from dataclasses import dataclass, field
from enum import Enum

from convrec_r1.rl.config import Ratio


class Correction(Enum):
    auto = "auto"
    """truncate where the engine has weights and arithmetic of its own; none for hf."""
    none = "none"
    truncate = "truncate"
    mask = "mask"


@dataclass
class RolloutConfig:
    engine: str = "hf"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_at_n: bool = False
    """End a list as soon as its line n is closed, without waiting for EOS."""
    correction: Correction = Correction.auto
    """Of the mismatch between the sampler's and the trainer's probabilities (rl/correction.py)."""
    correction_unit: Ratio | None = None
    """null: the unit of the algorithm's ratio."""
    correction_low: float = 0.0
    """mask: units less likely under the trainer by this factor teach nothing."""
    correction_high: float = 2.0
    """truncate: weights are at most this; mask: units above it teach nothing."""
    overlap: int = 0
    """Steps that rollouts are sampled ahead, with weights as old, while the trainer trains: 0 or 1."""
    batch_size: int = 128
    """hf: sequences generated at a time, in rollouts and in evaluation."""
    # vllm, vllm_server
    dtype: str | None = None
    """Of the engine's weights; null: bfloat16 on a GPU, float32 on a CPU."""
    memory_fraction: float = 0.3
    """Share of a GPU's memory that the engine takes for its weights and its cache."""
    kv_cache_gib: float | None = None
    """Memory of the cache instead; null on a CPU: room for `max_num_seqs` of the longest sequences, 4 GiB at most."""
    tensor_parallel_size: int = 1
    max_num_seqs: int = 256
    """Sequences that the engine advances at a time."""
    max_num_batched_tokens: int = 8192
    """Tokens of prompts and completions in one pass of the engine."""
    enforce_eager: bool | None = None
    """No CUDA graphs, no compilation: starts faster, samples slower; null: on CPUs only."""
    sleep: bool = False
    """vllm: give the GPU's memory back between rollouts, so that one GPU samples and trains."""
    checksum_every: int = 1
    """Syncs from one comparison of the engine's weights with the trainer's to the next; 0: never."""
    # vllm_server
    servers: list[str] = field(default_factory=list)
    """Addresses of servers that run already, as http://host:port; none: some are started here."""
    start: int = 1
    """Servers to start on this machine where no addresses are given."""
    transfer: str = "auto"
    """How weights reach the servers: file (same machine or shared folder), nccl (GPUs); auto: nccl where both have GPUs."""
    transfer_folder: str | None = None
    """transfer=file: where weights pass through, as the servers see it too; null: a temporary folder, in memory if it can."""
    start_timeout: float = 600
    """Seconds until a server must answer."""
    request_timeout: float = 600
    """Seconds until a group must be sampled."""
    retries: int = 3
    """Times that a group is asked for again, and a server started again, before the run stops."""

    @property
    def correction_in_effect(self) -> Correction:
        """What `correction` comes to with this engine."""
        if self.correction is Correction.auto:
            return Correction.none if self.engine == "hf" else Correction.truncate
        return self.correction
