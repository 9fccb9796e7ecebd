"""The SFT policy that RL starts from. It is trained once per model, data, seed and recipe, and found again by a digest."""

import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from convrec_r1 import __version__
from convrec_r1.base.digest import of_code, of_value
from convrec_r1.base.files import follow, read_jsonl, write_json
from convrec_r1.base.locks import locked
from convrec_r1.base.memory import trim
from convrec_r1.base.processes import barrier, is_first, rank
from convrec_r1.config.parts import base_policy, encoder_for
from convrec_r1.config.schema import Config
from convrec_r1.data import Conversation, Dataset
from convrec_r1.data.load import DEMONSTRATIONS, digests, sample, shown, with_demonstrations
from convrec_r1.data.stored import Rows
from convrec_r1.modules.fit import device_for, fit
from convrec_r1.modules.sft import Example, SFTModule, mean_loss
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import PromptEncoder
from convrec_r1.policy.load import load_policy, prepare_for_training, started_from
from convrec_r1.run.checkpoints import newest_step
from convrec_r1.run.identity import as_dict
from convrec_r1.run.tracker import JsonlSink, Tracker, rewind

_log = logging.getLogger(__name__)


CODE = ("lists", "data", "policy", "modules/sft", "modules/step", "modules/faults", "config/parts", "tasks/warm_start")
"""Code that decides the SFT policy."""


NOT_OF_SFT = ("name", "path", "revision", "reference_dtype")
"""Options of the model that do not decide the SFT policy: where the weights are, and the reference, which SFT does not have."""


@dataclass(frozen=True)
class WarmStart:
    """A finished SFT policy: outputs/warm_starts/<key>/."""

    folder: Path

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "metrics.jsonl")


def warm_start_key(cfg: Config, data: Dataset) -> str:
    """Return a digest of everything that the SFT policy depends on: options, contents of data and model, code."""
    contents = digests(data)
    model = as_dict(OmegaConf.structured(cfg.model))
    parts = {
        "model": {name: value for name, value in model.items() if name not in NOT_OF_SFT},
        "weights": started_from(cfg.model),
        "sft": as_dict(OmegaConf.structured(cfg.sft)),
        "data": [contents[name] for name in ("catalog", "train", "validation", DEMONSTRATIONS)],
        "instruction": cfg.data.instruction,
        "n": cfg.n,
        "seed": cfg.seed,
        "precision": cfg.trainer.precision,
        "compile": cfg.trainer.compile,
        # The policy divides its logits by the temperature in training too.
        "temperature": cfg.rollout.temperature,
        "code": of_code(*CODE),
    }
    return of_value(parts)


def warm_start(cfg: Config, data: Dataset) -> WarmStart:
    """Find the SFT policy of this config, or train it. A lock makes parallel runs of a sweep train it once."""
    folder = Path(cfg.outputs) / "warm_starts" / warm_start_key(cfg, data)
    found = WarmStart(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The first process of a distributed run holds the lock for all its processes.
    with locked(f"{folder}.lock") if is_first() else contextlib.nullcontext():
        if (folder / "warm_start.json").exists():
            _log.info("Warm start: using %s", folder)
            if cfg.fresh:
                _log.info("fresh=true keeps it: task=kept kept.clear=[%s] deletes it.", folder.name)
        else:
            _log.info("Warm start: training into %s", folder)
            _train(cfg, data, folder)
            trim()  # the policy
            barrier()  # the other processes read files that the first one writes
    return found


def _train(cfg: Config, data: Dataset, folder: Path) -> None:
    policy = base_policy(cfg, data)
    encoder = encoder_for(cfg, policy)
    held_out = sample(shown(data["validation"]), cfg.sft.eval_batches * cfg.sft.batch_size, cfg.data.seed)
    train = examples(with_demonstrations(data["train"], cfg.n, cfg.data.name), encoder)
    validation = list(examples(held_out, encoder))
    steps = cfg.sft.steps_for(len(train))
    first = is_first()
    metrics = folder / "metrics.jsonl"
    checkpoints = folder / "checkpoints"
    if first:
        rewind(metrics, newest_step(checkpoints) or 0, end="sft/validation")
    tracker = Tracker([JsonlSink(metrics)] if first else [])
    module = SFTModule(
        prepare_for_training(policy, cfg.model, cfg.seed, compiled=cfg.trainer.compile),
        cfg.sft,
        steps=steps,
        pass_limit=cfg.trainer.pass_limit,
        tracker=tracker,
        seed=cfg.seed,
        guard=cfg.guard,
    )
    world = cfg.trainer.world
    loader = StepLoader(train, cfg.sft.batch_size, steps, cfg.seed, rank=rank(), world=world)
    fit(module, loader, cfg.trainer, checkpoints, description="SFT")
    temperature = policy.temperature
    del policy, module, loader, encoder
    trim()  # before another policy is loaded
    if not first:
        return
    shutil.rmtree(folder / "policy", ignore_errors=True)
    # Copied from the checkpoint: under FSDP the policy in memory is only a shard.
    shutil.copytree(follow(checkpoints / "last") / "policy", folder / "policy")
    if validation:
        trained = load_policy(folder / "policy", cfg.model, temperature=temperature).to(device_for(cfg.trainer))
        tracker.log(steps, "sft", {"sft/validation_loss": mean_loss(trained, validation, cfg.trainer.pass_limit)})
    # Written last: it marks a finished warm start.
    made = {"version": __version__, "model": cfg.model.name, "data": cfg.data.name, "n": cfg.n, "seed": cfg.seed}
    write_json(folder / "warm_start.json", {"steps": steps, "examples": len(train), "key": folder.name, **made})
    shutil.rmtree(checkpoints, ignore_errors=True)


def examples(conversations: Sequence[Conversation], encoder: PromptEncoder) -> Sequence[Example]:
    """Return the conversations as token ids: those of prepared data when they are read, others at once."""
    found = _Examples(conversations, encoder)
    return found if isinstance(conversations, Rows) else list(found)


class _Examples(Sequence[Example]):
    def __init__(self, conversations: Sequence[Conversation], encoder: PromptEncoder) -> None:
        self._conversations, self._encoder = conversations, encoder

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: Any) -> Any:
        c = self._conversations[index]
        return Example(self._encoder.prompt(c), self._encoder.completion(c.demonstration or ()), c.id)
