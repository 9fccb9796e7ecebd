"""What `wandb sync` would upload: an offline run, read from its file."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    folder: Path
    id: str
    project: str
    name: str
    group: str
    job_type: str
    tags: set[str]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    """What each `log` call gave, without what W&B adds of its own (names with an underscore in front)."""
    axes: dict[str, str]
    """Of each metric or pattern that was defined: what it is plotted against."""
    summary: dict[str, Any]

    def table(self, name: str) -> list[list[dict[str, Any]]]:
        """The rows of each table that was logged under `name`, in order."""
        path = f"{name}/path"
        files = [self.folder / "files" / row[path] for row in self.history if path in row]
        tables = [json.loads(file.read_text()) for file in files]
        return [[dict(zip(table["columns"], row, strict=True)) for row in table["data"]] for table in tables]


def read(run_folder: Path) -> OfflineRun:
    """The one offline run of a run's folder."""
    (file,) = run_folder.glob("wandb/offline-run-*/*.wandb")
    found = whole(file)
    run = next(r.run for r in found if r.HasField("run"))
    history = [r.history.item for r in found if r.HasField("history")]
    return OfflineRun(
        folder=file.parent,
        id=run.run_id,
        project=run.project,
        name=run.display_name,
        group=run.run_group,
        job_type=run.job_type,
        tags=set(run.tags),
        config={item.key: json.loads(item.value_json) for item in run.config.update},
        history=[{key: value for key, value in items(row) if not key.startswith("_")} for row in history],
        axes={r.metric.name or r.metric.glob_name: r.metric.step_metric for r in found if r.HasField("metric")},
        summary=dict(item for r in found if r.HasField("summary") for item in items(r.summary.update)),
    )


def whole(file: Path, timeout: float = 30.0) -> list[Any]:
    """The records of a run that has ended. W&B's own process writes them, and may still be at it when `finish` returns."""
    deadline = time.monotonic() + timeout
    while True:
        found = list(records(file))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{file} has no exit record"
        time.sleep(0.1)


def items(entries: Any) -> Iterator[tuple[str, Any]]:
    for entry in entries:
        yield entry.key or "/".join(entry.nested_key), json.loads(entry.value_json)


def records(file: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, block, parts = file.read_bytes(), 7, 32 * 1024, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # a block's tail too short for a header is padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):  # still being written
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
