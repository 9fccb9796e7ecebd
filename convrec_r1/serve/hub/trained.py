"""A finished run as it is published: its policy, config, results, and the files that ask it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import follow, read_json
from convrec_r1.evaluate.config import EvalConfig, metric_in_effect
from convrec_r1.evaluate.labels import LABELS
from convrec_r1.run.checkpoints import policy_path, require_whole, run_of
from convrec_r1.run.folder import RunFolder, State
from convrec_r1.run.identity import flatten
from convrec_r1.serve.package import Package, read_package
from convrec_r1.studies.numbers import Writer

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    folder: RunFolder
    policy: Path
    """Folder of the policy that the run evaluated, in Hugging Face form."""
    tree: Mapping[str, Any]
    """The run's config."""
    summary: Mapping[str, Any]
    """Content of summary.json."""
    package: Package

    @property
    def config(self) -> dict[str, Any]:
        """The config with dotted keys."""
        return flatten(dict(self.tree))

    @property
    def system(self) -> str:
        """Name of the policy in summary.json."""
        return str(self.summary["algo"])

    @property
    def label(self) -> str:
        return LABELS.get(self.system, self.system)

    @property
    def metric(self) -> str:
        """The metric that the run's report is about."""
        options = EvalConfig(ks=self.config["eval.ks"], metric=self.config.get("eval.metric"))
        return metric_in_effect(options, self.package.settings.n)

    @property
    def write(self) -> Writer:
        return Writer(self.summary.get("labels") or {})

    @property
    def base_model(self) -> str | None:
        """Hub id of the model that training started from. None: it is not on the Hub, or not known."""
        path = str(self.config.get("model.path") or "")
        named = self.config.get("model.source") == "pretrained" and _HUB_ID.fullmatch(path)
        return path if named and not Path(path).exists() else None

    def parameters(self) -> int:
        """Return the number of weights in the policy's files, tied ones once."""
        count = 0
        for file in sorted(self.policy.glob("*.safetensors")):
            with safe_open(file, "numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  it is no mapping
                    size = 1
                    for length in tensors.get_slice(name).get_shape():
                        size *= length
                    count += size
        return count


def read_trained(checkpoint: str) -> Trained:
    """Read the run to publish.

    Raises:
        UserError: `checkpoint` is no finished training run, its policy is damaged, or it is another policy than that of the
            run's results.
    """
    path = run_of(checkpoint)
    if path is None:
        raise UserError(
            f"checkpoint={checkpoint}: no run's folder. A model card tells how a policy was trained and what it is worth, so "
            "task=publish needs the folder of a run (outputs/STUDY/RUN)."
        )
    folder = RunFolder(path)
    tree: Any = OmegaConf.to_container(OmegaConf.load(folder.config))
    if (kind := flatten(tree).get("task.name")) != "train":
        raise UserError(f"{path} is a run of task={kind}: give checkpoint= the run that trained the policy.")
    if folder.state() is not State.complete:
        raise UserError(f"{path} is not complete: its own command finishes it. Then publish it.")
    policy = policy_path(str(path))
    if not isinstance(policy, Path):
        raise UserError(f"{path} has no policy (checkpoints/last/policy): it was deleted, or never copied here.")
    asked = policy_path(str(follow(checkpoint)))
    if isinstance(asked, Path) and asked.resolve() != policy.resolve():
        raise UserError(
            f"checkpoint={checkpoint} is not the policy that the results of {path} are of ({policy}). Give the run's folder; "
            "eval.select=best or last decides in training which policy a run reports on."
        )
    require_whole(policy.parent)
    package = read_package(policy) or read_package(folder.package)
    if package is None:
        raise UserError(
            f"{path} has no {folder.package.name}/ with the settings and the catalog of its policy: a version before 0.3 "
            "trained it. Train it again with this version (the same command with fresh=true)."
        )
    return Trained(folder, policy, tree, read_json(folder.summary), package)
