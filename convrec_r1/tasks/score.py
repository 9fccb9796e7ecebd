"""task=score: score the lists of any system as the lists of a policy are scored. Loads no model."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrec_r1.base.files import read_json, write_json
from convrec_r1.config.parts import evaluator, matching
from convrec_r1.config.schema import Config
from convrec_r1.data import Conversation, Dataset
from convrec_r1.data.load import load_data
from convrec_r1.evaluate.config import system_name
from convrec_r1.evaluate.given import lay, read
from convrec_r1.evaluate.metrics import foreign_labels
from convrec_r1.evaluate.runner import Evaluator, write_asked
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.run.folder import RunFolder
from convrec_r1.studies.run_report import report

if TYPE_CHECKING:  # it imports Lightning, which takes seconds
    from convrec_r1.run.tracker import Tracker

_log = logging.getLogger(__name__)


def score(cfg: Config, folder: RunFolder, _: Callable[[], "Tracker"]) -> dict[str, Any]:
    """Score `cfg.lists` beside the baselines that need no policy. Return the content of summary.json."""
    split, path = cfg.eval.split, Path(str(cfg.lists)).expanduser()
    given = read(path)
    data = load_data(cfg.data, cfg.n, matching(cfg), need=[split])
    judged = evaluator(cfg, data)
    laid = lay(given, data[split], cfg.score.missing, f"{path} on the {split} split of {cfg.data.name}")
    for note in laid.notes:
        _log.warning("%s: %s", path, note)
    name = system_name(cfg.lists, cfg.name)
    systems = baselines(judged, laid.conversations, data, folder, split)
    systems[name] = judged.score(laid.texts, laid.conversations)
    systems[name].write_jsonl(folder.eval / f"{split}.jsonl")
    write_asked(laid.conversations, folder.eval / f"{split}.conversations.jsonl")
    labels = foreign_labels(judged.metrics, cfg.n, cfg.ks)
    asked = questions(folder, split, systems)
    notes = [*laid.notes, *(found["note"] for found in asked.values())]
    about = {"about": cfg.data.name, "how": f"from {path.name}", "remarks": notes}
    summary = report(folder, systems, cfg.eval, n=cfg.n, seed=None, labels=labels, **about)
    return summary | {"asked": asked, "lists": {"path": str(path), **laid.counts, "notes": laid.notes}}


def baselines(
    judged: Evaluator, conversations: Sequence[Conversation], data: Dataset, folder: RunFolder, split: str
) -> dict[str, Evaluation]:
    """Evaluate the baselines that need no policy, and write them beside the system's own evaluation."""
    systems = {}
    for name in judged.baselines:
        if (found := judged.baseline(name, conversations, data["train"])) is not None:
            systems[name] = found
            found.write_jsonl(folder.eval / f"{split}.{name}.jsonl")
            keep_questions(judged, name, folder, split)
    return systems


def keep_questions(judged: Evaluator, name: str, folder: RunFolder, split: str) -> None:
    """Write what a baseline asked of a model that costs money (its `asked`): a resumed run does not ask again."""
    if asked := getattr(judged.baselines[name], "asked", None):
        write_json(folder.eval / f"{split}.{name}.asked.json", asked)


def questions(folder: RunFolder, split: str, names: Sequence[str] | dict[str, Any]) -> dict[str, Any]:
    """Return what `keep_questions` wrote, by baseline."""
    files = {name: folder.eval / f"{split}.{name}.asked.json" for name in names}
    return {name: read_json(file) for name, file in files.items() if file.exists()}
