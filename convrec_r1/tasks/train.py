"""task=train: warm start, group-relative RL, evaluation with baselines."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

from convrec_r1.base.files import follow, point
from convrec_r1.base.memory import trim
from convrec_r1.base.plugins import build
from convrec_r1.base.processes import is_first, rank
from convrec_r1.config.parts import (
    base_policy,
    constrained,
    constraint_for,
    dataset,
    encoder_for,
    evaluation_key,
    evaluator,
    judge,
    matching,
    objective,
    rl_settings,
)
from convrec_r1.config.schema import Config
from convrec_r1.data import Dataset
from convrec_r1.data.load import make_adapter, sample
from convrec_r1.doctor.plan import plan_of
from convrec_r1.evaluate.baselines import PolicyName
from convrec_r1.evaluate.config import Select, split_note
from convrec_r1.evaluate.runner import write_asked
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.modules.callbacks import Watch
from convrec_r1.modules.config import GuardAction
from convrec_r1.modules.fit import device_for, fit
from convrec_r1.modules.guard import Guard
from convrec_r1.modules.measure import long_run_warning
from convrec_r1.modules.rl import RLModule
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import Policy, load_policy
from convrec_r1.policy.config import ModelSource
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.rl.config import Stage
from convrec_r1.rollout.base import RolloutEngine
from convrec_r1.rollout.config import ConstraintChoice
from convrec_r1.rollout.constraint import Constraint
from convrec_r1.rollout.engines import run_engine
from convrec_r1.run.checkpoints import newest, newest_step, require_whole, seal
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.identity import as_dict
from convrec_r1.run.tracker import SPLIT_STEPS, Tracker, rewind
from convrec_r1.serve.fields import fields_of
from convrec_r1.serve.package import Package, read_package, settings_of, write_package
from convrec_r1.tasks import inputs
from convrec_r1.tasks.distill import with_demonstrations
from convrec_r1.tasks.systems import keep_questions, report_on
from convrec_r1.tasks.warm_start import WarmStart, warm_start

_log = logging.getLogger(__name__)


def train(cfg: Config, folder: RunFolder, tracker: Callable[[], Tracker]) -> dict[str, Any]:
    """Run the whole job in `folder`, or resume it. Return the content of summary.json.

    tracker: builds the tracker; called after the data is loaded.
    """
    job = Job(cfg, folder, tracker)
    try:
        summary = job.run()
        job.tracker.close(summary["metrics"][cfg.algo.name])
        return summary
    finally:
        job.close()


class Job:
    """The main job. Every process of a distributed run has one."""

    def __init__(self, cfg: Config, folder: RunFolder, tracker: Callable[[], Tracker]) -> None:
        self.cfg, self.folder = cfg, folder
        need = ["train", cfg.eval.split, *(["validation"] if cfg.eval.every else [])]
        data = dataset(cfg, need=need)
        self.first = is_first()
        if self.first:
            inputs.begin(cfg, folder, data)
            self.pack(data)
        self.data, made = with_demonstrations(cfg, data)
        if made is not None:
            self.use(made)
        self.evaluator = evaluator(cfg, self.data)
        self.device = device_for(cfg.trainer)
        self.world = cfg.trainer.world
        if self.first:  # steps after the checkpoint will be logged again
            step = newest_step(folder.checkpoints)
            if step is None:
                rewind(folder.metrics, -1)
            else:
                rewind(folder.metrics, step, keep=SPLIT_STEPS, end=f"{cfg.eval.split}/")
        self.tracker = tracker() if self.first else Tracker()
        self._engine: RolloutEngine | None = None
        self._constraint: tuple[dict[str, int], Constraint | None] | None = None
        """The constraint that was built last, for the tokenizer with this vocabulary."""
        self.watch: Watch | None = None
        """Callback of stage 2. None: stage 2 has not started."""
        self.steps = 0
        """Finished steps of stage 2."""

    def run(self) -> dict[str, Any]:
        """Train and evaluate. Return the content of summary.json."""
        cfg = self.cfg
        self.warn_if_long()
        warm = None
        if cfg.warm_start == "sft" or cfg.algo.stage is Stage.sft:
            warm = warm_start(cfg, self.data)
            self.use(warm.folder)
            if newest(self.folder.checkpoints) is None:
                for record in warm.metrics:
                    self.tracker.log(record["step"], record["split"], record["values"])
        systems = self.baselines(warm)
        if self._engine is not None and self.world > 1:
            self._engine.close()  # it started without the process group, and must start again inside it
        policy = self.reinforce(warm) if cfg.algo.stage is Stage.rl else self.start(warm)
        if cfg.algo.stage is not Stage.rl and self.first:
            policy.save(self.folder.checkpoints / "000000" / "policy")
            seal(self.folder.checkpoints / "000000")
            point(self.folder.checkpoints / "last", "000000")
        systems[cfg.algo.name] = self.evaluator.score(self.lists(policy, cfg.algo.name), self.data[cfg.eval.split])
        if not self.first:
            return {"metrics": {cfg.algo.name: {}}}
        split = cfg.eval.split
        systems[cfg.algo.name].write_jsonl(self.folder.eval / f"{split}.jsonl")
        write_asked(self.data[split], self.folder.eval / f"{split}.conversations.jsonl")
        final = systems[cfg.algo.name].summary()
        self.tracker.log(self.steps, split, {f"{split}/{name}": value for name, value in final.items()})
        chosen = self.watch is not None and (cfg.eval.select is Select.best or cfg.eval.patience is not None)
        note = split_note(cfg.eval, trained=True, chosen=chosen)
        return report_on(systems, self.evaluator, cfg, self.folder, note=note) | self.outcome()

    def pack(self, data: Dataset) -> None:
        """Write what the policy needs to recommend without the dataset."""
        cfg = self.cfg
        if read_package(self.folder.package) is None:
            fields = fields_of(data.catalog, make_adapter(cfg.data, cfg.n, matching(cfg)), cfg.data.name)
            settings = settings_of(as_dict(OmegaConf.structured(cfg), resolve=True))
            write_package(self.folder.package, Package(settings, data.catalog, fields))

    def use(self, kept: Path) -> None:
        """Record that the run uses a shared artifact."""
        if self.first:
            inputs.use(self.folder, kept)

    def warn_if_long(self) -> None:
        """Log a warning if the run will take more than a day. The run continues."""
        cfg = self.cfg
        if cfg.model.source is ModelSource.tiny or newest(self.folder.checkpoints) is not None:
            return
        policy = base_policy(cfg, self.data).to(self.device)
        plan = plan_of(cfg, self.data, encoder_for(cfg, policy), packs=policy.packs)
        bf16 = (cfg.trainer.precision or "").startswith("bf16")
        if sentence := long_run_warning(policy, self.engine(policy), plan, bf16=bf16):
            _log.warning("%s The run continues.", sentence)
        self.let_go()

    def baselines(self, warm: WarmStart | None) -> dict[str, Evaluation]:
        """Evaluate the baselines. Shared baselines are stored with the warm start, and later runs read them there."""
        split, key = self.cfg.eval.split, evaluation_key(self.cfg, self.data)
        systems: dict[str, Evaluation] = {}
        for name, baseline in self.evaluator.baselines.items():
            own = self.folder.eval / f"{split}.{name}.jsonl"
            cached = warm.folder / "eval" / f"{name}-{key}.jsonl" if warm and baseline.shared else own
            found = self.baseline(name, warm, cached)
            if found is not None:
                systems[name] = found
                if self.first and cached != own:
                    found.write_jsonl(own)
        return systems

    def baseline(self, name: str, warm: WarmStart | None, cached: Path) -> Evaluation | None:
        """Evaluate a baseline, or read it from `cached`. None: the baseline is not defined for this run."""
        if cached.exists():
            return self.evaluator.read(cached)

        def ask(which: PolicyName) -> list[str] | None:
            if which == "base":
                return self.lists(base_policy(self.cfg, self.data), name)
            if not self.cfg.warm_start or self.cfg.algo.stage is not Stage.rl:
                return None
            return self.lists(self.start(warm), name)

        found = self.evaluator.baseline(name, self.data[self.cfg.eval.split], self.data["train"], ask)
        if found is not None and self.first:
            keep_questions(self.evaluator, name, self.folder, self.cfg.eval.split)
            found.write_jsonl(cached)
        return found

    def start(self, warm: WarmStart | None) -> Policy:
        """Return the policy that RL starts from."""
        if warm:
            return load_policy(warm.policy, self.cfg.model)
        if self.cfg.warm_start:
            return load_policy(follow(Path(self.cfg.warm_start).expanduser()), self.cfg.model)
        return base_policy(self.cfg, self.data)

    def reinforce(self, warm: WarmStart | None) -> Policy:
        """Run stage 2. Return the trained policy, or the best one (eval.select)."""
        checkpoints, select = self.folder.checkpoints, self.cfg.eval.select
        policy = self.learn(self.start(warm))
        if select is not Select.best and not policy.shard_root:
            trim()  # the optimizer and the reference
            return policy
        del policy  # under FSDP it holds only the shard of this process
        self.let_go()
        chosen = follow(checkpoints / select.value)
        require_whole(chosen)
        return load_policy(chosen / "policy", self.cfg.model)

    def learn(self, policy: Policy) -> Policy:
        """Train `policy`. Return it as it is after the last step."""
        cfg = self.cfg
        policy = prepare_for_training(policy, cfg.model, cfg.seed, compiled=cfg.trainer.compile)
        policy.temperature = cfg.rollout.temperature
        engine = self.engine(policy)
        encoder = encoder_for(cfg, policy)
        loader = StepLoader(
            self.data["train"],
            cfg.rl.prompts_per_step,
            cfg.rl.steps,
            cfg.seed,
            rank=rank(),
            world=self.world,
        )
        # A GPU's policy has its reference beside it. In RAM the reference would take a fifth of the whole.
        scratch = self.folder.path if self.device.type == "cpu" else None
        settings = rl_settings(cfg, scratch)
        module = RLModule(
            policy, engine, encoder, judge(cfg, self.data.catalog), objective(cfg), settings, self.tracker, loader,
            constraint=self.constraint(policy) if cfg.rollout.constraint is not ConstraintChoice.none else None,
        )  # fmt: skip
        held = self.held_in_evaluation(policy)
        held_out = sample(self.data["validation"], cfg.eval.validation_size, cfg.data.seed) if cfg.eval.every else []

        def validate(step: int) -> float:
            evaluation = self.evaluator.policy(policy, engine, encoder, held_out, "  validation", held)
            names = {name: value for name, value in evaluation.summary().items() if not name.startswith("rank/")}
            self.tracker.log(step, "validation", {f"val/{name}": value for name, value in names.items()})
            return names[cfg.metric]

        self.watch = Watch(
            validate,
            every=cfg.eval.every,
            total=cfg.rl.steps,
            patience=cfg.eval.patience,
            guard=Guard(cfg.guard, cfg.n) if cfg.guard.action is not GuardAction.none else None,
            stop_on_collapse=cfg.guard.action is GuardAction.stop,
        )
        own = [build(node, f"callbacks.{name}", pl.Callback) for name, node in cfg.callbacks.items()]
        fit(
            module,
            loader,
            cfg.trainer,
            self.folder.checkpoints,
            description=cfg.algo.name,
            callbacks=[self.watch, *own],
        )
        module.pipeline.close()
        self.steps = module.step
        return policy

    def lists(self, policy: Policy, name: str) -> list[str]:
        """Return a greedy list of `policy` for each conversation of the evaluation split."""
        policy = policy.to(self.device)
        asked, encoder = self.data[self.cfg.eval.split], encoder_for(self.cfg, policy)
        held = self.held_in_evaluation(policy)
        texts = self.evaluator.texts(policy, self.engine(policy), encoder, asked, f"Evaluating {name}", held)
        self.let_go()
        return texts

    def engine(self, policy: Policy) -> RolloutEngine:
        """Return the engine of the run. One with weights of its own is built once and serves all policies."""
        if self._engine is None:
            length, cluster = self.cfg.model.max_length, self.cfg.cluster
            held = self.constraint(policy)
            self._engine = run_engine(self.cfg.rollout, policy, max_length=length, cluster=cluster, constraint=held)
        return self._engine

    def constraint(self, policy: Policy) -> Constraint | None:
        """Return what lists of `policy` are held to, somewhere in the run. Built once for policies with one vocabulary."""
        if not constrained(self.cfg):
            return None
        vocabulary = policy.tokenizer.get_vocab()
        if self._constraint is None or self._constraint[0] != vocabulary:
            self._constraint = vocabulary, constraint_for(self.cfg, self.data.catalog, policy)
        return self._constraint[1]

    def held_in_evaluation(self, policy: Policy) -> Constraint | None:
        """Return what lists of `policy` are held to when they are evaluated (eval.constraint)."""
        return self.constraint(policy) if self.cfg.eval.constraint is not ConstraintChoice.none else None

    def let_go(self) -> None:
        """Drop the engine if it samples from a policy object itself: it would keep that policy in memory with the next one."""
        if self._engine is not None and not getattr(self._engine, "own_weights", True):
            self._engine.close()
            self._engine = None
        trim()

    def outcome(self) -> dict[str, Any]:
        """Return the end of training for summary.json."""
        chosen = self.cfg.eval.select.value if self.watch else "last"
        ended = {"steps": self.steps, "policy": f"checkpoints/{chosen}/policy", "stopped": None, "collapses": []}
        if self.watch:
            ended |= {"stopped": self.watch.stopped, "collapses": self.watch.collapses}
        if self.watch and self.watch.best is not None:
            ended["best"] = {"metric": f"val/{self.cfg.metric}", "value": self.watch.best, "step": self.watch.best_step}
        return ended

    def close(self) -> None:
        self.tracker.close()
        if self._engine is not None:
            self._engine.close()
