"""The folder of a run, outputs/<study>/<run>, derived from its config. The same command finds the same run again."""

import json
import os
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import fixed_part
from convrec_r1.config.inherit import config_folders, inherit
from convrec_r1.evaluate.config import system_name
from convrec_r1.run.identity import as_dict, identity, left_out, with_sources

OUTPUTS = "outputs"
"""Not part of the identity, but other keys refer to it."""


def run_name(*, _root_: DictConfig) -> str:
    """Resolve `${run_name:}`: readable parts, then a digest of the identity of the run."""
    without = left_out(_root_)
    plain = OmegaConf.masked_copy(_root_, [str(k) for k in _root_ if k not in without - {OUTPUTS} and k != "hydra"])
    overrides = OmegaConf.select(_root_, "hydra.overrides.task", default=None) or []
    inherit(plain, overrides, config_folders(OmegaConf.select(_root_, "hydra.runtime", default=None)))
    values = as_dict(plain, resolve=True)
    text = json.dumps(identity(with_sources(values), without), sort_keys=True, default=str)
    digest = blake2b(text.encode(), digest_size=4).hexdigest()
    parts = [
        *_leading_parts(values),
        values["model"].get("name", "?"),
        values["data"].get("name", "?"),
        f"s{values['seed']}",
    ]
    if values["task"]["name"] == "score":  # no model and no seed
        parts = ["score", system_name(values.get("lists"), values.get("name")), values["data"].get("name", "?")]
    if values["task"]["name"] == "distill":
        parts = [
            "distill",
            values["distill"].get("name", "?"),
            values["teacher"].get("model") or values["teacher"]["name"],
        ]
        embedder = values["embedder"]
        parts += [embedder.get("name") or str(embedder["_target_"]).rsplit(".", 1)[-1], values["data"].get("name", "?")]
    return "-".join(_cleaned(part) for part in [*parts, digest])


def _leading_parts(values: dict[str, Any]) -> list[str]:
    algo = values["algo"].get("name", "?")
    if values["task"]["name"] != "train":
        return [values["task"]["name"], Path(str(values.get("checkpoint"))).name]
    return [algo] if algo == "sft" else [algo, (values["reward"] or {}).get("name", "reward")]


def _cleaned(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "_", str(part).rsplit("/", 1)[-1])


def run_dir(*, _root_: DictConfig) -> str:
    """Resolve `${run_dir:}`: outputs/<study>/<run name>. For task=compare: comparison/ beside the compared runs."""
    if _root_.task.name == "compare" and _root_.runs:
        patterns = [_root_.runs] if isinstance(_root_.runs, str) else list(_root_.runs)
        beside = os.path.commonpath([os.path.dirname(os.path.abspath(str(pattern))) for pattern in patterns])
        return str(fixed_part(Path(beside)) / "comparison")
    return f"{study_dir(_root_=_root_)}/{run_name(_root_=_root_)}"


def study_dir(*, _root_: DictConfig) -> str:
    """Resolve `${study_dir:}`: outputs/<study>.

    Raises:
        UserError: the study's name is not the name of a folder.
    """
    study = str(_root_.study)
    if study in ("", ".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", study):
        raise UserError(
            f"study={study!r} is not the name of a folder: give a plain name; outputs=DIR says where studies stand."
        )
    return f"{_root_.outputs}/{study}"
