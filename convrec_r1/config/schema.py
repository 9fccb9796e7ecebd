"""The whole config of a run. The options of each room are in ROOM/config.py."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from convrec_r1.base.options import option
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.data.config import DataConfig
from convrec_r1.distill.config import DistillConfig, TeacherConfig
from convrec_r1.evaluate.config import EvalConfig, ScoreConfig, cutoffs, metric_in_effect
from convrec_r1.modules.config import GuardConfig, RLConfig, SFTConfig, TrainerConfig
from convrec_r1.policy.config import ModelConfig
from convrec_r1.rl.config import AlgoConfig
from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.run.config import KeptConfig, LoggerConfig
from convrec_r1.serve import config as serve
from convrec_r1.serve.config import AskKeys, ServeConfig
from convrec_r1.serve.hub.config import PublishConfig
from convrec_r1.studies.config import CompareConfig

TASKS = ("train", "eval", "score", "distill", "compare", "kept", "workspace", "doctor", "publish", *serve.TASKS)


@dataclass
class TaskConfig:
    """The task of a command: conf/task."""

    name: str = option(MISSING, choices=TASKS)


@dataclass
class RecipeConfig:
    """Training recipe: conf/recipe. It sets values of `sft`, `rl` and `eval`."""

    name: str = "paper"


@dataclass
class Config(AskKeys):
    """The config of a run. Slots of type Any name a class by `_target_`: docs/extend.md."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    reward: Any = MISSING
    match: Any = MISSING
    """When two titles name the same item: `_target_` of a `matching.Matching` and its options."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    cluster: ClusterConfig = option(factory=ClusterConfig, identity=False)
    logger: LoggerConfig = option(factory=LoggerConfig, identity=False)
    eval: EvalConfig = field(default_factory=EvalConfig)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics by name: `_target_` of an `evaluate.metrics.Metric` and its options."""
    baselines: dict[str, Any] = field(default_factory=dict)
    """Baselines by name: `_target_` of an `evaluate.baselines.Baseline` and its options."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """The user's Lightning callbacks for stage 2, by name."""
    loggers: dict[str, Any] = option(factory=dict, identity=False)
    """The user's Lightning loggers, by name."""
    compare: CompareConfig = option(factory=CompareConfig, identity=False)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    embedder: Any = MISSING
    """Embeds items and conversations for Remap: `_target_` of a `distill.embedders.base.Embedder` and its options."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    n: int = option(20, least=1)
    """Recommendations in a list."""
    seed: int = 1
    warm_start: str | None = "sft"
    """"sft": train it once and share it. null: none (R1-zero). A folder: that policy."""
    checkpoint: str | None = None
    """task=eval, recommend, chat, serve: a run's folder, a policy's folder or a Hub id. task=publish: a run's folder."""
    serve: ServeConfig = option(factory=ServeConfig, identity=False)
    hub: str | None = option(None, identity=False)
    """task=publish: ORG/NAME on the Hugging Face Hub."""
    publish: PublishConfig = option(factory=PublishConfig, identity=False)
    lists: str | None = None
    """task=score: a file or folder of lists that any system wrote."""
    name: str | None = None
    """task=score: what tables call that system. null: the name of the file."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    runs: Any = option(None, identity=False)
    """task=compare: a pattern of run folders, or a list of patterns."""
    study: str = option("main", identity=False)
    outputs: str = option("outputs", identity=False)
    fresh: bool = option(False, identity=False)
    """Start over if the folder holds a run."""
    other_code: bool = option(False, identity=False)
    """Resume an interrupted run that other code of this package began."""
    kept: KeptConfig = option(factory=KeptConfig, identity=False)

    @property
    def ks(self) -> list[int]:
        """Cut-offs up to n."""
        return cutoffs(self.eval.ks, self.n)

    @property
    def metric(self) -> str:
        """`eval.metric`, or its default if it is null."""
        return metric_in_effect(self.eval, self.n)

    @property
    def max_lines(self) -> int | None:
        """Maximum number of lines of a completion. None: it ends at EOS."""
        return self.n if self.rollout.stop_at_n else None
