"""task=serve: answer requests over HTTP until a signal."""

import logging
import os
import time
from pathlib import Path

from convrec_r1.base.signals import Interrupted
from convrec_r1.config.schema import Config
from convrec_r1.run.checkpoints import run_of
from convrec_r1.serve.http.app import make_app
from convrec_r1.serve.http.config import KEY, LOOPBACK
from convrec_r1.serve.http.feedback import Feedback
from convrec_r1.serve.http.server import Listening, address, listen, names
from convrec_r1.serve.http.service import Served, Service
from convrec_r1.tasks.recommend import open_recommender

_log = logging.getLogger(__name__)


def serve(cfg: Config) -> None:
    """Serve `cfg.checkpoint`, and `serve.compare` beside it, until a signal (`Interrupted`).

    Raises:
        UserError: a policy cannot be loaded, or the port is in use.
    """
    key = os.environ.get(KEY) or None
    listener = listen(cfg.host, cfg.port)
    url = address(listener)
    feedback = Feedback(Path(cfg.serve.feedback), cfg.serve.max_feedback) if cfg.serve.feedback else None
    service = Service(cfg.serve, feedback)
    try:
        with Listening(make_app(service, key=key, hosts=names(cfg.host, cfg.serve)), listener, service) as listening:
            _log.info("Loading. Requests are answered at %s from then on.", url)
            if key is None and cfg.host not in LOOPBACK:
                _log.warning("host=%s: others can reach this server, and it asks for no key. Set %s.", cfg.host, KEY)
            service.open(_load(cfg))
            _log.info("Ready: %s (models: %s). API: %s/docs", url, ", ".join(service.models), url)
            while listening.alive:
                time.sleep(0.5)
            raise RuntimeError("the HTTP server ended by itself")
    except Interrupted as interrupted:
        raise Interrupted(interrupted.number, service.farewell) from None
    finally:
        service.close()


def _load(cfg: Config) -> list[Served]:
    """Load the policies."""
    assert cfg.checkpoint is not None  # config/checks.py
    checkpoints = [cfg.checkpoint, *([cfg.serve.compare] if cfg.serve.compare else [])]
    served: list[Served] = []
    for path in checkpoints:
        name = _name(path, [other.name for other in served])
        _log.info("Policy %s: %s", name, path)
        session = open_recommender(cfg, path).session
        served.append(Served.of(name, session, cfg.serve.n))
    return served


def _name(checkpoint: str, taken: list[str]) -> str:
    """Return what requests call a policy: the name of its run, else of its folder, or its Hub id."""
    run = run_of(checkpoint)
    name = run.absolute().name if run else Path(checkpoint).name if Path(checkpoint).exists() else checkpoint
    return f"{name}-2" if name in taken else name
