"""task=recommend: recommendations for one message, or for a file of conversations."""

import logging
from pathlib import Path
from typing import Any

from convrec_r1.base.digest import of_model
from convrec_r1.base.progress import console
from convrec_r1.config.schema import Config
from convrec_r1.run.checkpoints import policy_path
from convrec_r1.serve.answers import answer_file, read_requests
from convrec_r1.serve.chat import table
from convrec_r1.serve.filters import Condition
from convrec_r1.serve.recommender import Recommender
from convrec_r1.serve.request import Request

_log = logging.getLogger(__name__)


def recommend(cfg: Config) -> None:
    """Answer `cfg.message` on the terminal, or the lines of `cfg.input` in `cfg.output`."""
    if cfg.message is not None:
        request = Request(cfg.message, **asked(cfg))
        with open_recommender(cfg) as recommender:
            (reply,) = recommender.ask([request])
        console.print(table(reply.result()))
        for note in reply.notes:
            _log.warning(note)
        return
    assert cfg.input is not None  # serve/config.py
    assert cfg.output is not None
    output = Path(cfg.output).expanduser()
    lines = read_requests(Path(cfg.input).expanduser(), asked(cfg), _policy(cfg))
    with open_recommender(cfg) as recommender:
        done = answer_file(recommender, lines, output)
    before = f", {done:,} of them before" if done else ""
    _log.info("%s answers in %s%s", f"{len(lines):,}", output, before)


def open_recommender(cfg: Config, checkpoint: str | None = None) -> Recommender:
    """Load a policy as `serve`, `rollout` and `trainer` say. checkpoint: None: `cfg.checkpoint`."""
    serve = cfg.serve
    device = {"cpu": "cpu", "gpu": "cuda"}.get(cfg.trainer.accelerator)
    return Recommender.load(
        str(checkpoint or cfg.checkpoint), engine=cfg.rollout, constraint=serve.constraint.value, catalog=serve.catalog,
        device=device, dtype=serve.dtype, revision=serve.revision, limit=serve.limit,
    )  # fmt: skip


def asked(cfg: Config) -> dict[str, Any]:
    """Return the options of requests. Raises UserError for a condition that cannot be read."""
    serve = cfg.serve
    if cfg.where is not None:
        Condition.parse(cfg.where)
    return {
        "n": serve.n, "seen": list(cfg.seen), "exclude": list(cfg.exclude), "where": cfg.where,
        "temperature": serve.temperature, "top_p": serve.top_p, "top_k": serve.top_k, "seed": serve.seed,
    }  # fmt: skip


def _policy(cfg: Config) -> str:
    """Return what answers depend on besides the requests."""
    weights = of_model(str(policy_path(str(cfg.checkpoint))), cfg.serve.revision)
    return f"{weights} {cfg.serve.constraint.value} {cfg.serve.catalog}"
