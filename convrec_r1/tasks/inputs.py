"""Digests of a run's inputs (its data, the policy it starts from, the code) in RUN/inputs.json.

A folder is found by its config, so the same command finds it even if a file has changed. Then the contents are compared. A run
of other data or of another policy is refused. So is an interrupted run of other code: each code would have made half of it. A
complete run of other code is returned with a warning: its results are whole, and the record says which code made them.
"""

import logging
from pathlib import Path
from typing import Any

from convrec_r1 import __version__
from convrec_r1.base.digest import of_code, of_files, of_model, stamp
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import follow, read_json, write_json
from convrec_r1.config.parts import dataset, matching
from convrec_r1.config.schema import Config
from convrec_r1.data import Dataset
from convrec_r1.data.config import DEMONSTRATIONS as BY_NAME
from convrec_r1.data.load import DEMONSTRATIONS, digests, files_of, make_adapter
from convrec_r1.run.checkpoints import policy_path
from convrec_r1.run.folder import RunFolder

_log = logging.getLogger(__name__)

_SHOWERS = ("cli", "doctor", "studies", "config/help")
"""Code that decides no result."""


def begin(cfg: Config, folder: RunFolder, data: Dataset) -> None:
    """Record the inputs of a new run. Those of an interrupted run must be the same.

    data: the dataset as it was loaded, before a teacher's demonstrations replace its own.
    Raises:
        UserError: the data, the policy or the code differ from those that the run began with.
    """
    now, before = _read_now(cfg, data), _recorded(folder)
    if before is None:
        write_json(folder.inputs, now)
        return
    changed = _differences(before, now)
    if before.get("code") != now["code"]:
        if not cfg.other_code:
            changed.append(f"the code of this package ({_versions(before, now)}; other_code=true resumes nevertheless)")
        now["earlier_code"] = [*before.get("earlier_code", []), before.get("code")]
    if changed:
        raise _refusal(folder, "began with", changed)
    write_json(folder.inputs, {**now, "uses": list(dict.fromkeys([*before.get("uses", []), *now["uses"]]))})


def record(cfg: Config, folder: RunFolder, data: Dataset) -> None:
    """Record the inputs of a run that always starts over (task=score). Those of an interrupted one do not count.

    data: the dataset as it was loaded.
    """
    write_json(folder.inputs, _read_now(cfg, data))


def check_complete(cfg: Config, folder: RunFolder) -> None:
    """Check that a complete run is made from what its command would read now.

    The data is loaded only if one of its files, or the code, has changed since.

    Raises:
        UserError: the data or the policy differ.
    """
    before = _recorded(folder)
    if before is None:
        _log.warning("The contents that %s was made from are not recorded, so they are not compared.", folder.path)
        return
    now: dict[str, Any] = {**_besides(cfg), "code": _code()}
    files = _stamps(cfg)
    if files is None or files != before.get("files") or now["code"] != before.get("code"):
        now["data"] = digests(dataset(cfg, need=[]))
    if changed := _differences(before, now):
        raise _refusal(folder, "was made from", changed)
    if before.get("code") != now["code"]:
        _log.warning("%s was made by other code (%s). fresh=true makes it again.", folder.path, _versions(before, now))


def use(folder: RunFolder, kept: Path) -> None:
    """Record that a run uses a shared artifact, for task=kept."""
    found = _recorded(folder)
    if found is not None and kept.name not in found.get("uses", []):
        write_json(folder.inputs, found | {"uses": [*found.get("uses", []), kept.name]})


def _read_now(cfg: Config, data: Dataset) -> dict[str, Any]:
    uses = [data.folder.name] if data.folder else []  # prepared data
    return {"data": digests(data), "files": _stamps(cfg), **_besides(cfg), "code": _code(), "uses": uses}


def _besides(cfg: Config) -> dict[str, Any]:
    """Return digests of all inputs besides the dataset and the code, by name."""
    # What models and Stage 1 need takes seconds to import, and task=score has neither.
    task, demonstrations = cfg.task.name, cfg.data.demonstrations
    found: dict[str, Any] = {}
    if task == "eval" and cfg.checkpoint:
        found["checkpoint"] = of_model(str(policy_path(cfg.checkpoint)), cfg.model.revision)
    if task == "train":
        from convrec_r1.policy.load import started_from

        found["model"] = started_from(cfg.model)
        if cfg.warm_start not in (None, "sft"):
            found["warm_start"] = of_files(follow(Path(cfg.warm_start).expanduser()))
        if demonstrations not in BY_NAME:
            found["data.demonstrations"] = of_files(follow(Path(demonstrations).expanduser() / "dataset"))
    if task == "distill" or (task == "train" and demonstrations == "distilled"):
        from convrec_r1.distill.demonstrations import read_besides
        from convrec_r1.distill.pipeline import Setup

        found |= read_besides(Setup(cfg.distill, cfg.embedder, cfg.data, cfg.match, cfg.n))
    return found


def _code() -> dict[str, str]:
    return {"version": __version__, "sources": of_code(without=_SHOWERS)}


def _stamps(cfg: Config) -> dict[str, list[int]] | None:
    """Return size, time and inode of the files that the adapter may read. None: not known."""
    files = files_of(make_adapter(cfg.data, cfg.n, matching(cfg)))
    return None if files is None else {str(file.absolute()): list(stamp(file)) for file in files}


def _recorded(folder: RunFolder) -> dict[str, Any] | None:
    return read_json(folder.inputs) if folder.inputs.exists() else None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of contents that differ between two records. What one of them does not have is not compared."""
    data = [name for name, value in now.get("data", {}).items() if before["data"].get(name, value) != value]
    words = {"catalog": "the catalog", DEMONSTRATIONS: "the demonstrations"}
    listed = [words.get(name, f"the {name} split") for name in data]
    besides = {
        "model": "the model's files", "checkpoint": "the checkpoint", "warm_start": "the policy in warm_start",
        "data.demonstrations": "the folder in data.demonstrations", "metadata": "the items' metadata",
        "embedder": "the embedder's model",
    }  # fmt: skip
    return listed + [text for name, text in besides.items() if before.get(name, now.get(name)) != now.get(name)]


def _versions(before: dict[str, Any], now: dict[str, Any]) -> str:
    then, after = ((r.get("code") or {}).get("version") for r in (before, now))
    return f"version {then} then, {after} now" if then != after else f"both are version {after}"


def _refusal(folder: RunFolder, verb: str, changed: list[str]) -> UserError:
    listed = "\n".join(f"  {line}" for line in changed)
    return UserError(
        f"{folder.path} {verb} other contents. What differs:\n{listed}\n"
        "Start over with fresh=true, keep both with another folder (study=NAME or hydra.run.dir=DIR), or restore the contents."
    )
