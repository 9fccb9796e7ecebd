"""Options of training: the optimizer, SFT, RL, the trainer, the collapse guard, non-finite updates."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING

from convrec_r1.base.options import option
from convrec_r1.rl.config import AlgoConfig
from convrec_r1.rollout.config import RolloutConfig

MICRO_TOKENS = 8192
"""Default of `trainer.micro_tokens`."""


class Schedule(Enum):
    """Learning rate after the warm-up: constant, or falling to zero."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class GuardAction(Enum):
    """What happens when a limit of the collapse guard is passed."""

    stop = "stop"
    """Save, end the training there, evaluate what there is."""
    warn = "warn"
    """Save, log it once, continue."""
    none = "none"


class NonFinite(Enum):
    """What happens to an update with NaN or Inf in it."""

    stop = "stop"
    """Save the batch, do not apply the update, end the run with an error."""
    skip = "skip"
    """Save the batch, do not apply the update, continue."""


class Optimizer(Enum):
    """The optimizer."""

    adamw = "adamw"
    """torch's AdamW: 8 bytes of state for each fp32 parameter."""
    adamw_8bit = "adamw_8bit"
    """AdamW of bitsandbytes, on GPUs: 2 bytes of state for each parameter, quantized in blocks of 256."""


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    optimizer: Optimizer = Optimizer.adamw

    lr: float = option(MISSING, above=0)
    betas: list[float] = option(factory=lambda: [0.9, 0.99], least=0, below=1)
    weight_decay: float = option(0.0, least=0)
    grad_clip: float = option(1.0, least=0)
    """Largest norm of a gradient. 0: not clipped."""
    schedule: Schedule = Schedule.constant
    warmup: float = option(0.0, least=0, most=1)
    """Share of the optimizer steps."""


@dataclass
class SFTConfig(OptimConfig):
    """Supervised warm start."""

    lr: float = option(5e-5, above=0)
    schedule: Schedule = Schedule.cosine
    warmup: float = option(0.05, least=0, most=1)
    epochs: float = option(10, above=0)
    steps: int | None = option(None, least=1)
    """Optimizer steps, instead of epochs."""
    batch_size: int = option(64, least=1)
    eval_batches: int = option(4, least=0)
    """Batches of the validation split for sft/validation_loss."""

    def steps_for(self, examples: int) -> int:
        """Return the optimizer steps that SFT on so many examples takes."""
        return self.steps or max(1, round(self.epochs * examples / self.batch_size))


@dataclass
class RLConfig(OptimConfig):
    """Group-relative RL."""

    lr: float = option(1e-6, above=0)
    steps: int = option(3000, least=1)
    prompts_per_step: int = option(48, least=1)
    completions_per_step: int | None = option(None, least=1)
    """Instead of `prompts_per_step`, which then is this divided by `algo.group_size`."""
    table_every: int = option(20, least=1, identity=False)
    """Steps between tables of sampled lists."""
    table_rows: int = option(16, least=0, identity=False)


@dataclass(frozen=True)
class PassLimit:
    """What one forward and backward pass holds at most. None: no limit of this kind. A single completion always fits."""

    sequences: int | None = None
    tokens: int | None = None
    """A prompt counts once for all its completions in the pass."""

    def rows(self, prompt: int, completion: int, sharing: int) -> int:
        """Return the completions in a pass where all have these lengths and `sharing` of them have one prompt."""
        found = self.sequences or 1 << 30
        if self.tokens is not None:
            whole, left = divmod(self.tokens, prompt + sharing * completion)
            found = min(found, whole * sharing + (max(0, left - prompt) // completion if sharing > 1 else 0))
        return max(1, found)


@dataclass
class TrainerConfig:
    """Hardware and checkpoints."""

    name: str = MISSING
    accelerator: str = option("auto", choices=("auto", "cpu", "gpu"))
    """auto: the GPUs of this machine, else the CPU."""
    devices: int | None = option(None, least=1)
    """null: the GPUs of this machine, as far as they divide a step's prompts and the SFT batch; on a CPU 1."""
    nodes: int = option(1, least=1)
    strategy: str = option("auto", choices=("auto", "ddp", "fsdp"))
    precision: str | None = option(None, choices=("32-true", "bf16-mixed", "bf16-true"))
    """null: bf16-mixed on GPUs (fp32 master weights), 32-true on CPUs."""
    micro_batch: int | None = option(None, least=1, identity=False)
    """Completions in one forward and backward pass; memory and speed only, never the result. null: as `micro_tokens` says."""
    micro_tokens: int | None = option(None, least=1, identity=False)
    """Tokens in one pass, a prompt once for all its completions. null: 8192, or no limit where `micro_batch` is given."""
    threads: int | None = option(None, least=1)
    """Threads of torch on a CPU. null: torch's own choice."""
    compile: bool = False
    """Compile the decoder layers (torch.compile): pays on GPUs, after the minutes of the first steps."""
    checkpoint_every: int = option(50, least=1, identity=False)
    """Steps between checkpoints."""
    keep_checkpoints: int = option(2, least=1, identity=False)
    """Checkpoints to resume from that are kept: the newest may turn out to be damaged. `best` and `collapsed` stay too."""
    exit_within: float = option(120, least=0, identity=False)
    """Seconds that a step may take after SIGTERM, Ctrl-C or SIGUSR1 before the run exits without saving it."""

    @property
    def world(self) -> int:
        """Processes of the run."""
        return (self.devices or 1) * self.nodes

    @property
    def pass_limit(self) -> PassLimit:
        """Limit of a forward and backward pass."""
        return PassLimit(self.micro_batch, self.micro_tokens or (None if self.micro_batch else MICRO_TOKENS))


@dataclass
class GuardConfig:
    """The collapse guard, and what happens to non-finite updates (`nonfinite`, used by modules/faults.py).

    Collapse guard (modules/guard.py): limits on means over the last `window` steps of what is sampled; null: no limit. A limit
    is armed once the run has been within it, so that R1-zero is not stopped where it starts.
    """

    action: GuardAction = GuardAction.stop
    window: int = option(5, least=1)
    """Steps."""
    min_list_length: float | None = 0.5
    """Of `list/length`, as a share of n."""
    max_list_length: float | None = 1.5
    """Of `list/length`, as a share of n."""
    min_in_catalog: float | None = 0.5
    """Of `catalog/valid`."""
    max_kl: float | None = 1.0
    """Of `kl`, nats per token; watched where algo.beta > 0."""
    min_entropy: float | None = 0.01
    """Of `entropy`, nats per token."""
    max_entropy: float | None = None
    # Not part of the identity: a run that was stopped may be resumed with skip.
    nonfinite: NonFinite = option(NonFinite.stop, identity=False)
    nonfinite_patience: int = option(3, least=1, identity=False, hint="To skip none: guard.nonfinite=stop.")
    """skip: updates in a row that may be skipped; one more stops the run."""

    def problems(self) -> list[str]:
        """Sentences about pairs of limits that nothing can be within."""
        pairs = (("min_list_length", "max_list_length"), ("min_entropy", "max_entropy"))
        bounds = [(low, getattr(self, low), high, getattr(self, high)) for low, high in pairs]
        return [
            f"guard.{low}={a} is not below guard.{high}={b}: nothing would be within both."
            for low, a, high, b in bounds
            if a is not None and b is not None and a >= b
        ]


@dataclass(frozen=True)
class RLSettings:
    """What stage 2 reads of a run's config."""

    algo: AlgoConfig
    rl: RLConfig
    rollout: RolloutConfig
    n: int
    """Recommendations in a list."""
    max_tokens: int
    """Completion limit."""
    pass_limit: PassLimit
    """Limit of a forward and backward pass."""
    seed: int = 1
    guard: GuardConfig = field(default_factory=GuardConfig)
    reference_dtype: str | None = None
    """Dtype of the reference policy's weights. None: as the policy's."""
    reference_folder: Path | None = None
    """Where the reference policy's weights lie in a file on a CPU. None: in RAM."""
