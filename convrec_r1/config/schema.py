"""The whole config of a run. Each room keeps its options beside the code that reads them: ROOM/config.py."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from convrec_r1.data.config import DataConfig
from convrec_r1.distill.config import DistillConfig, EmbedderConfig, TeacherConfig
from convrec_r1.evaluate.config import EvalConfig
from convrec_r1.modules.config import GuardConfig, RLConfig, SFTConfig, TrainerConfig
from convrec_r1.policy.config import ModelConfig
from convrec_r1.reward.config import RewardConfig
from convrec_r1.rl.config import AlgoConfig
from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.run.config import LoggerConfig
from convrec_r1.studies.config import CompareConfig


@dataclass
class TaskConfig:
    name: str = MISSING


@dataclass
class Config:
    """The whole of a run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    n: int = 20
    """Recommendations in a list."""
    seed: int = 1
    warm_start: str | None = "sft"
    """"sft": train it once and share it; null: none (R1-zero); a folder: that policy."""
    checkpoint: str | None = None
    """task=eval: a run's folder, a policy's folder or a Hub id. task=replay: RUN/faults/step-000012."""
    runs: Any = None
    """task=compare: a pattern of run folders, or a list of such."""
    study: str = "main"
    outputs: str = "outputs"
    fresh: bool = False
    """Start over where the run's folder holds a run already."""

    @property
    def ks(self) -> list[int]:
        """Cut-offs that lists of n can be measured at."""
        return sorted({k for k in self.eval.ks if k <= self.n}) or [self.n]

    @property
    def metric(self) -> str:
        """`eval.metric`, or what it is where that is null."""
        return self.eval.metric or f"ndcg@{10 if 10 in self.ks else self.ks[-1]}"

    @property
    def max_lines(self) -> int | None:
        """Lines after which a completion is stopped; None: it goes on to EOS."""
        return self.n if self.rollout.stop_at_n else None
