"""Options of training: the optimizer, SFT, RL, the trainer, the collapse guard."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class GuardAction(Enum):
    stop = "stop"
    """Save, end the training there, evaluate what there is."""
    warn = "warn"
    """Save, say so once, go on."""
    none = "none"


class NonFinite(Enum):
    stop = "stop"
    """Save the batch, make no update of it, end the run with an error."""
    skip = "skip"
    """Save the batch, leave its update out, go on."""


@dataclass
class OptimConfig:
    lr: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    schedule: Schedule = Schedule.constant
    warmup: float = 0.0
    """Share of the optimizer steps."""


@dataclass
class SFTConfig(OptimConfig):
    lr: float = 5e-5
    schedule: Schedule = Schedule.cosine
    warmup: float = 0.05
    epochs: float = 10
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 64
    eval_batches: int = 4


@dataclass
class RLConfig(OptimConfig):
    lr: float = 1e-6
    steps: int = 3000
    prompts_per_step: int = 48
    table_every: int = 20
    """Steps between sampled tables of rollouts."""
    table_rows: int = 16


@dataclass
class TrainerConfig:
    name: str = MISSING
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    micro_batch: int = 32
    """Sequences in one forward and backward; memory only, never the result."""
    threads: int | None = None
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    """To go on from; the newest may turn out to be damaged. Those that names point to (best, collapsed) stay beside them."""
    exit_within: float = 120
    """Seconds that a step may go on for after SIGTERM, Ctrl-C or SIGUSR1, before the run leaves without saving it."""


@dataclass
class GuardConfig:
    """The collapse guard: limits on means over the last `window` steps of what is sampled; null: no limit.

    A limit is armed once the run has been within it, so that R1-zero is not stopped for where it starts.
    """

    action: GuardAction = GuardAction.stop
    window: int = 5
    min_list_length: float | None = 0.5
    """Of `list/length`, as a share of n."""
    max_list_length: float | None = 1.5
    """Of `list/length`, as a share of n."""
    min_in_catalog: float | None = 0.5
    """Of `catalog/valid`."""
    max_kl: float | None = 1.0
    """Of `kl`, nats a token; watched where algo.beta > 0."""
    min_entropy: float | None = 0.01
    """Of `entropy`, nats a token."""
    max_entropy: float | None = None
    nonfinite: NonFinite = NonFinite.stop
    """What happens where a loss, a gradient or log-probs are NaN or infinite. Weights that are always stop the run."""
    nonfinite_patience: int = 3
    """skip: updates in a row that may be left out; one more stops the run."""
