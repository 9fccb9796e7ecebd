"""The systems that a task evaluates: baselines that need no policy, and the report on all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from convrec_r1.base.files import read_json, write_json
from convrec_r1.config.schema import Config
from convrec_r1.data import Conversation, Dataset
from convrec_r1.evaluate.metrics import foreign_labels
from convrec_r1.evaluate.runner import Evaluator
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.rollout.config import ConstraintChoice
from convrec_r1.run.folder import RunFolder
from convrec_r1.studies.run_report import Wording, report


def evaluate_baselines(
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
    """Write what a baseline asked of a model that costs money (its `asked`). A resumed run does not ask again."""
    if asked := getattr(judged.baselines[name], "asked", None):
        write_json(folder.eval / f"{split}.{name}.asked.json", asked)


def report_on(
    systems: Mapping[str, Evaluation],
    judged: Evaluator,
    cfg: Config,
    folder: RunFolder,
    *,
    how: str | None = None,
    remarks: Sequence[str] = (),
    note: str | None = None,
) -> dict[str, Any]:
    """Write the report of a run, see `report`. Return the content of summary.json, with what baselines asked.

    how: how lists were made. None: by greedy decoding, of policies that `eval.constraint` says what they are held to.
    """
    if how is None:
        held = cfg.eval.constraint is not ConstraintChoice.none
        how = f"greedy decoding{', held to the catalog (eval.constraint=catalog)' if held else ''}"
    files = {name: folder.eval / f"{cfg.eval.split}.{name}.asked.json" for name in systems}
    asked = {name: read_json(file) for name, file in files.items() if file.exists()}
    trained = cfg.task.name != "score"
    wording = Wording(
        title=f"{cfg.model.name} on {cfg.data.name}" if trained else cfg.data.name,
        seed=cfg.seed if trained else None,
        how=how,
        remarks=[*remarks, *(found["note"] for found in asked.values())],
        note=note,
        labels=foreign_labels(judged.metrics, cfg.n, cfg.ks),
    )
    return report(folder, systems, cfg.eval, wording, n=cfg.n) | {"asked": asked}
