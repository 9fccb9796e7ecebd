"""task=eval: evaluate the policy of a run, of a folder, or from the Hub."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convrec_r1.config.inherit import read_by_run
from convrec_r1.config.parts import constraint_for, dataset, encoder_for, evaluator
from convrec_r1.config.schema import Config
from convrec_r1.evaluate.config import Select, split_note
from convrec_r1.evaluate.runner import write_asked
from convrec_r1.modules.fit import device_for
from convrec_r1.policy import load_policy
from convrec_r1.rollout.engines import run_engine
from convrec_r1.run.checkpoints import policy_path, require_whole
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.tracker import Tracker, rewind
from convrec_r1.tasks import inputs
from convrec_r1.tasks.systems import evaluate_baselines, report_on

_log = logging.getLogger(__name__)


def evaluate(cfg: Config, folder: RunFolder, tracker: Callable[[], Tracker]) -> dict[str, Any]:
    """Evaluate `cfg.checkpoint` and the baselines that need no policy. Return the content of summary.json."""
    data = dataset(cfg, need=[cfg.eval.split])
    inputs.begin(cfg, folder, data)
    judged = evaluator(cfg, data)
    assert cfg.checkpoint is not None  # config/checks.py
    path = policy_path(cfg.checkpoint)
    _log.info("Policy: %s", path)
    require_whole(Path(path).parent)
    policy = load_policy(path, cfg.model).to(device_for(cfg.trainer))
    constraint = constraint_for(cfg, data.catalog, policy)
    length = cfg.model.max_length
    engine = run_engine(cfg.rollout, policy, max_length=length, cluster=cfg.cluster, constraint=constraint)
    split = cfg.eval.split
    systems = evaluate_baselines(judged, data[split], data, folder, split)
    name = Path(cfg.checkpoint).name
    try:
        given = policy, engine, encoder_for(cfg, policy), data[split], f"Evaluating {name}", constraint
        systems[name] = judged.policy(*given)
    finally:
        engine.close()
    systems[name].write_jsonl(folder.eval / f"{split}.jsonl")
    write_asked(data[split], folder.eval / f"{split}.conversations.jsonl")
    rewind(folder.metrics, -1)  # an interrupted run may have logged them already
    log = tracker()
    try:
        log.log(0, split, {f"{split}/{key}": value for key, value in systems[name].summary().items()})
        chosen = cfg.eval.select is Select.best or cfg.eval.patience is not None or "best" in Path(cfg.checkpoint).parts
        met = read_by_run(cfg)
        note = split_note(cfg.eval, trained=met, chosen=met and chosen)
        return report_on(systems, judged, cfg, folder, note=note)
    finally:
        log.close(systems[name].summary())
