"""task=score: score the lists of any system as the lists of a policy are scored. Loads no model."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrec_r1.config.parts import dataset, evaluator
from convrec_r1.config.schema import Config
from convrec_r1.evaluate.config import system_name
from convrec_r1.evaluate.given import assign, read
from convrec_r1.evaluate.runner import write_asked
from convrec_r1.run.folder import RunFolder
from convrec_r1.tasks import inputs
from convrec_r1.tasks.systems import evaluate_baselines, report_on

if TYPE_CHECKING:  # it imports Lightning, which takes seconds
    from convrec_r1.run.tracker import Tracker

_log = logging.getLogger(__name__)


def score(cfg: Config, folder: RunFolder, _: Callable[[], "Tracker"]) -> dict[str, Any]:
    """Score `cfg.lists` beside the baselines that need no policy. Return the content of summary.json."""
    split, path = cfg.eval.split, Path(str(cfg.lists)).expanduser()
    given = read(path)
    data = dataset(cfg, need=[split])
    inputs.record(cfg, folder, data)
    judged = evaluator(cfg, data)
    assigned = assign(given, data[split], cfg.score.missing, f"{path} on the {split} split of {cfg.data.name}")
    for note in assigned.notes:
        _log.warning("%s: %s", path, note)
    name = system_name(cfg.lists, cfg.name)
    systems = evaluate_baselines(judged, assigned.conversations, data, folder, split)
    systems[name] = judged.score(assigned.texts, assigned.conversations)
    systems[name].write_jsonl(folder.eval / f"{split}.jsonl")
    write_asked(assigned.conversations, folder.eval / f"{split}.conversations.jsonl")
    summary = report_on(systems, judged, cfg, folder, how=f"from {path.name}", remarks=assigned.notes)
    return summary | {"lists": {"path": str(path), **assigned.counts, "notes": assigned.notes}}
