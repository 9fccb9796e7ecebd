"""Write the metrics of a run to metrics.jsonl, and to Lightning loggers.

Lightning's CSVLogger deletes the file that it finds, and so cannot resume a run: metrics.csv is made from metrics.jsonl.
"""

import csv
import io
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from convrec_r1 import __version__
from convrec_r1.base.files import read_jsonl, write_jsonl, write_text
from convrec_r1.run.config import LoggerConfig, LoggerKind
from convrec_r1.run.folder import RunFolder

SPLIT_STEPS = {"sft": "sft/step"}
"""Axis of each split's metrics. Splits not named here go by `step`, the RL step."""
CALLBACKS = "callbacks"
"""Split of what users' callbacks log through Lightning (`pl_module.log`)."""


class Sink:
    """A destination of records. The base class drops them."""

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Record metrics."""

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a table of samples."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish, with the final values of the run."""


class Tracker:
    """Passes each record to every sink. Only the first process has sinks."""

    def __init__(self, sinks: Sequence[Sink] = (), loggers: Sequence[Logger] = ()) -> None:
        self.sinks = list(sinks)
        self.loggers = list(loggers)
        """Of Lightning's Trainer, for what callbacks log."""

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Record metrics of a step, by their full names."""
        clean = {name: float(value) for name, value in values.items()}
        for sink in self.sinks:
            sink.log(step, split, clean)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a table of samples."""
        for sink in self.sinks:
            sink.table(name, step, rows)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Finish every sink. A second call does nothing."""
        for sink in self.sinks:
            sink.close(summary or {})
        self.sinks = []


class JsonlSink(Sink):
    """One JSON object a line: {"step", "split", "values"}. Tables go to <tables>/<name>-<step>.jsonl."""

    def __init__(self, path: Path, tables: Path | None = None) -> None:
        self.path, self.tables = path, tables
        path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, "split": split, "values": values}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.tables:
            write_jsonl(self.tables / f"{name}-{step:06d}.jsonl", [dict(row) for row in rows])


class JsonlLogger(Logger):
    """A Lightning logger that writes what callbacks log into metrics.jsonl, split "callbacks"."""

    def __init__(self, sink: JsonlSink) -> None:
        super().__init__()
        self._sink = sink

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds the config."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if values:
            self._sink.log((step or 0) + 1, CALLBACKS, values)


class LoggerSink(Sink):
    """A Lightning logger as a sink. Tables are not sent: loggers have no common form for them."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.logger.log_metrics(dict(values), step)

    def close(self, summary: Mapping[str, Any]) -> None:
        self.logger.finalize("success")


class CsvSink(Sink):
    """Writes metrics.csv from metrics.jsonl when the run ends: a row per step and split, a column per metric."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self, summary: Mapping[str, Any]) -> None:
        records = read_jsonl(self.path)
        names = list(dict.fromkeys(name for record in records for name in record["values"]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "split", *names])
        for record in records:
            writer.writerow([record["step"], record["split"], *(record["values"].get(name, "") for name in names)])
        write_text(self.path.with_suffix(".csv"), text.getvalue())


class WandbSink(Sink):
    """Weights & Biases: the same names as in metrics.jsonl, on the axes of `SPLIT_STEPS`."""

    def __init__(self, cfg: LoggerConfig, folder: Path, about: "About") -> None:
        import wandb
        from pytorch_lightning.loggers import WandbLogger

        # Its banner and its summary would drown ours; `wandb sync FOLDER/wandb/offline-*` uploads the run later.
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=False)
        id_file = folder / "wandb" / "run_id"
        earlier = set_aside(folder / "wandb")
        self._run = wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            mode=cfg.mode,  # pyright: ignore[reportArgumentType]  # a string of the config, one of W&B's words
            dir=folder,
            name=folder.name,
            id=id_file.read_text().strip() if id_file.exists() else None,
            resume="allow" if cfg.mode == "online" else None,
            group=about.study,
            job_type=about.task,
            tags=[*about.tags, *cfg.tags],
            config={"version": __version__, **about.config, "git_sha": about.git_sha},
            settings=settings,
            reinit="finish_previous",
        )
        write_text(id_file, self._run.id)
        # The run is ours: made by WandbLogger it would have a pattern "*" on Lightning's step beside our axes.
        self.logger = WandbLogger(experiment=self._run)
        self._table = wandb.Table
        self._defined = {"step", *SPLIT_STEPS.values()}
        for axis in self._defined:
            self._run.define_metric(axis)
        if earlier:
            self._replay(folder)

    def _replay(self, folder: Path) -> None:
        """Record again what the run's files hold: of several offline parts of one run `wandb sync` keeps the last one only."""
        tables = {
            int(file.stem.rpartition("-")[2]): file for file in sorted((folder / "rollouts").glob("rollouts-*.jsonl"))
        }
        for record in read_jsonl(RunFolder(folder).metrics):
            step, split = record["step"], record["split"]
            if split == CALLBACKS:
                self.logger.log_metrics(record["values"], step - 1)  # as Lightning counts
            else:
                self.log(step, split, record["values"])
            if split == "train" and step in tables:
                self.table("rollouts", step, read_jsonl(tables[step]))

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        axis = SPLIT_STEPS.get(split, "step")
        # Each name by itself: of two patterns that match, "*" and "sft/*", W&B takes one at random.
        for name in values:
            if name not in self._defined:
                self._run.define_metric(name, step_metric=axis)
                self._defined.add(name)
        self._run.log({axis: step, **values})

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            columns = list(rows[0])
            data: list[Any] = [
                [row[c] if isinstance(row[c], (int, float, str)) else json.dumps(row[c]) for c in columns]
                for row in rows
            ]
            self._run.log({"step": step, f"tables/{name}": self._table(columns=[*columns], data=data)})

    def close(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


def set_aside(wandb: Path) -> bool:
    """Move the offline parts of an interrupted run to wandb/earlier/, where `wandb sync` does not look. Return whether any was.

    The next part holds them whole (`WandbSink`). Their system metrics (GPU, memory) stay in wandb/earlier/ only.
    """
    parts = sorted(wandb.glob("offline-run-*"))
    for part in parts:
        (wandb / "earlier").mkdir(exist_ok=True)
        part.rename(wandb / "earlier" / part.name)
    return bool(parts)


@dataclass(frozen=True)
class About:
    """Names and config of a run, for loggers that hold many runs."""

    study: str
    task: str
    tags: Sequence[str]
    """Algorithm, model and data."""
    config: Mapping[str, Any]
    """The resolved config as plain values."""
    git_sha: str | None = None


def make_tracker(cfg: LoggerConfig, folder: RunFolder, about: About, own: Sequence[Logger] = ()) -> Tracker:
    """Build the sinks that `cfg` asks for, in the run's folder.

    own: Lightning loggers of the user's.
    """
    jsonl = JsonlSink(folder.metrics, folder.rollouts)
    sinks: list[Sink] = [jsonl, *(LoggerSink(logger) for logger in own)]
    loggers = [JsonlLogger(jsonl), *own]
    if cfg.kind is LoggerKind.csv:
        sinks.append(CsvSink(folder.metrics))
    if cfg.kind is LoggerKind.wandb and cfg.mode != "disabled":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = WandbSink(cfg, folder.path, about)
        sinks.append(wandb)
        loggers.append(wandb.logger)
    return Tracker(sinks, loggers)


def rewind(path: Path, step: int, *, keep: Collection[str] = (), end: str | None = None) -> None:
    """Remove records after `step` from a metrics file: a resumed run logs them again.

    Args:
        keep: splits whose records all stay, because they go by another axis.
        end: prefix of the names of the final evaluation. It has the last step, but comes after the last checkpoint.
    """

    def stays(row: dict[str, Any]) -> bool:
        final = end is not None and any(name.startswith(end) for name in row["values"])
        return not final and (row["split"] in keep or row["step"] <= step)

    if path.exists():
        write_jsonl(path, [row for row in read_jsonl(path) if stays(row)])
