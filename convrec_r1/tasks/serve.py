"""task=serve: answer requests over HTTP until a signal."""

import logging
import os
import time
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.base.signals import Interrupted
from convrec_r1.config.schema import Config
from convrec_r1.serve.app import PAGE, make_app
from convrec_r1.serve.config import KEY, LOOPBACK
from convrec_r1.serve.feedback import Feedback
from convrec_r1.serve.load import load_session
from convrec_r1.serve.server import Listening, address, listen, names
from convrec_r1.serve.service import Served, Service

_log = logging.getLogger(__name__)


def serve(cfg: Config) -> None:
    """Serve `cfg.checkpoint`, and `serve.compare` beside it. Ends with `Interrupted`, once what is under way is answered.

    Raises:
        UserError: a policy cannot be loaded, or the port is in use.
    """
    key = os.environ.get(KEY) or None
    listener = listen(cfg.host, cfg.port)
    feedback = Feedback(Path(cfg.serve.feedback), cfg.serve.max_feedback) if cfg.serve.feedback else None
    service = Service(cfg.serve, feedback)
    url = address(listener)
    try:
        with Listening(make_app(service, key=key, hosts=names(cfg.host, cfg.serve)), listener, service) as listening:
            _say(cfg, url, key)
            service.open(_load(cfg))
            _log.info("Ready: %s", url)
            while listening.alive:
                time.sleep(1)
        raise UserError("The HTTP server ended by itself.")
    except Interrupted as interrupted:
        raise Interrupted(interrupted.number, _words(interrupted.number, service)) from None
    finally:
        service.close()
