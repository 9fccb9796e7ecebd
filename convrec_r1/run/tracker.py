"""Metrics of a run: metrics.jsonl always, and what the logger config asks for beside it."""

import csv
import io
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from convrec_r1 import __version__
from convrec_r1.base.files import read_jsonl, write_jsonl, write_text
from convrec_r1.config.schema import Config
from convrec_r1.run.config import LoggerConfig, LoggerKind

SPLIT_STEPS = {"sft": "sft/step"}
"""Axis of each split's metrics; those not named here go by `step`, the RL step."""


class Sink(Protocol):
    def log(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self, summary: Mapping[str, Any]) -> None: ...


class Tracker:
    """Hands each record to every sink. Processes other than the first have no sinks."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Record `values` at `step`; names are final, nothing is put before them."""
        clean = {name: float(value) for name, value in values.items()}
        for sink in self.sinks:
            sink.log(step, split, clean)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for sink in self.sinks:
            sink.table(name, step, rows)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        for sink in self.sinks:
            sink.close(summary or {})
        self.sinks = []


class JsonlSink:
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

    def close(self, summary: Mapping[str, Any]) -> None:
        pass


class CsvSink:
    """metrics.csv, made from metrics.jsonl when the run ends: a row a step and split, a column a metric."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def close(self, summary: Mapping[str, Any]) -> None:
        records = read_jsonl(self.path)
        names = list(dict.fromkeys(name for record in records for name in record["values"]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "split", *names])
        for record in records:
            writer.writerow([record["step"], record["split"], *(record["values"].get(name, "") for name in names)])
        write_text(self.path.with_suffix(".csv"), text.getvalue())


class WandbSink:
    """Weights & Biases, offline unless asked: the same names, on our own step axes."""

    def __init__(self, cfg: LoggerConfig, run: Config, config: dict[str, Any], folder: Path, sha: str | None) -> None:
        import wandb

        # Its banner and its summary would drown ours; `wandb sync FOLDER/wandb/offline-*` uploads the run later.
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=False)
        id_file = folder / "wandb" / "run_id"
        self._run = wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            mode=cfg.mode,  # pyright: ignore[reportArgumentType]  # a string of the config, one of W&B's words
            dir=folder,
            name=folder.name,
            id=id_file.read_text().strip() if id_file.exists() else None,
            resume="allow" if cfg.mode == "online" else None,
            group=run.study,
            job_type=run.task.name,
            tags=[run.algo.name, run.model.name, run.data.name, *cfg.tags],
            config={"version": __version__, **config, "git_sha": sha},
            settings=settings,
            reinit="finish_previous",
        )
        write_text(id_file, self._run.id)
        self._table = wandb.Table
        self._defined = {"step", *SPLIT_STEPS.values()}
        for axis in self._defined:
            self._run.define_metric(axis)

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


def make_tracker(cfg: Config, config: dict[str, Any], folder: Any, sha: str | None) -> Tracker:
    """The sinks that `cfg.logger` asks for, in the run's folder."""
    sinks: list[Sink] = [JsonlSink(folder.metrics, folder.rollouts)]
    if cfg.logger.kind is LoggerKind.csv:
        sinks.append(CsvSink(folder.metrics))
    if cfg.logger.kind is LoggerKind.wandb and cfg.logger.mode != "disabled":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        sinks.append(WandbSink(cfg.logger, cfg, config, folder.path, sha))
    return Tracker(sinks)


def rewind(path: Path, step: int, *, keep: Collection[str] = (), end: str | None = None) -> None:
    """Drop from a metrics file what was logged after `step`: a resumed run computes and logs it again.

    Splits in `keep` go by another axis and stay whole. A `step` below every record, and no `keep`: nothing stays.
    end: what the names of the last evaluation's metrics begin with. It bears the last step, and comes after every checkpoint.
    """
    if path.exists():
        rows = [row for row in read_jsonl(path) if row["split"] in keep or row["step"] <= step]
        write_jsonl(
            path, [row for row in rows if end is None or not any(name.startswith(end) for name in row["values"])]
        )
