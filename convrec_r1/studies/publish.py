"""Publish a study's W&B workspace."""

import logging
import os

from convrec_r1.base.errors import UserError
from convrec_r1.config.schema import Config
from convrec_r1.studies.workspace import build

_log = logging.getLogger(__name__)


def workspace(cfg: Config) -> str:
    """Save the workspace of `cfg.study` in `cfg.logger`'s project and return its URL.

    `cfg` tells the length of lists and the cut-offs too: give the overrides that the study's runs were given. Each call
    saves a view of its own; W&B lists them side by side. Runs appear in it once they are uploaded (`wandb sync`).
    UserError without the package, a key, an entity, or a connection.
    """
    built = build(cfg.study, cfg.logger.entity, cfg.logger.project, n=cfg.n, ks=cfg.ks)
    import wandb

    where = f"{cfg.logger.entity or 'your default entity'}/{cfg.logger.project}"
    try:
        if not wandb.login(prompt=False, verify=False):
            unset = f" and unset WANDB_MODE={os.environ['WANDB_MODE']}" if os.environ.get("WANDB_MODE") else ""
            raise UserError(f"No W&B key to publish with: set WANDB_API_KEY, or run `wandb login` once{unset}.")
        if not built.entity:
            built.entity = wandb.Api().default_entity or ""
        if built.entity:
            built.save()
    except UserError:
        raise
    except Exception as error:  # what the upload raises is of many kinds, some of them private to wandb
        raise UserError(
            f"W&B did not take the workspace for {where} ({type(error).__name__}: {error}). Check the key, the names in "
            "logger.entity and logger.project, and the connection."
        ) from error
    if not built.entity:
        raise UserError("This W&B account has no default entity: say whose project it is with logger.entity=NAME.")
    _log.info("Workspace of study %s: %s", cfg.study, built.url)
    return built.url
