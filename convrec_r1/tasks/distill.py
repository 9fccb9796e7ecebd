"""task=distill: demonstrations from a teacher's answers, or an estimate of their cost. Also loads the training data."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convrec_r1.base.files import follow, point, read_json, write_text
from convrec_r1.base.plugins import build
from convrec_r1.cluster.blocks import LOOP, RayTasks
from convrec_r1.config.parts import dataset, evaluator
from convrec_r1.config.schema import Config
from convrec_r1.data import Dataset
from convrec_r1.distill import card as cards
from convrec_r1.distill.baseline import TeacherLists
from convrec_r1.distill.demonstrations import estimate, find_or_make, with_distilled
from convrec_r1.distill.measure import Measure
from convrec_r1.distill.pipeline import Setup
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.tracker import Tracker, rewind
from convrec_r1.tasks import inputs


def distill(cfg: Config, folder: RunFolder, tracker: Callable[[], Tracker]) -> dict[str, Any]:
    """Make or find the demonstrations of `cfg` and show their card. Return the content of summary.json."""
    data = dataset(cfg, need=["train"])
    inputs.begin(cfg, folder, data)
    made = _find_or_make(cfg, data)
    inputs.use(folder, made)
    card = read_json(made / "card.json")
    cards.show(card)
    for name in ("dataset", "arrow"):
        point(folder.path / name, os.path.relpath(made / name, folder.path))
    folder.figures.mkdir(exist_ok=True)
    shutil.copyfile(made / "card.png", folder.figures / "card.png")
    write_text(folder.path / "report.md", cards.render(card) + "\n![Stages and popularity](figures/card.png)\n")
    rewind(folder.metrics, -1)  # an interrupted run may have logged them already
    log = tracker()
    values = {
        f"distill/{stage}/{name}": value
        for stage, found in card["held_out"].items()
        for name, value in found["metrics"].items()
        if not name.startswith("rank/")
    }
    log.log(0, "distill", values)
    log.close({})
    return {"demonstrations": str(made), "card": card}


def dry_run(cfg: Config) -> None:
    """Show the questions and the cost of Stage 1, or of the teacher as a baseline. Nothing is asked, started or written."""
    if cfg.task.name != "distill":
        data = dataset(cfg, need=[cfg.eval.split])
        baseline = build(
            cfg.baselines["teacher"], "baselines.teacher", TeacherLists, teacher=cfg.teacher, data=cfg.data
        )
        return cards.show_forecast([baseline.forecast(data[cfg.eval.split], cfg.n)], cfg.teacher)
    data = dataset(cfg, need=["train"])
    if found := estimate(_setup(cfg), cfg.teacher, data, Path(cfg.outputs)):
        cards.show_forecast(found, cfg.teacher)


def with_demonstrations(cfg: Config, data: Dataset) -> tuple[Dataset, Path | None]:
    """Return the dataset with the demonstrations that `data.demonstrations` names, and their folder if there is one."""
    source = cfg.data.demonstrations
    if source in ("published", "neighbours"):
        return data, None
    made = _find_or_make(cfg, data) if source == "distilled" else follow(Path(source).expanduser())
    return with_distilled(data, follow(made / "dataset")), made


def _setup(cfg: Config) -> Setup:
    return Setup(cfg.distill, cfg.embedder, cfg.data, cfg.match, cfg.n)


def _find_or_make(cfg: Config, data: Dataset) -> Path:
    measure = Measure(evaluator(cfg, data).score, cfg.ks, cfg.metric, cfg.eval.resamples, cfg.eval.level)
    each = RayTasks() if cfg.cluster.on_ray else LOOP
    return find_or_make(_setup(cfg), cfg.teacher, data, measure, Path(cfg.outputs), each)
