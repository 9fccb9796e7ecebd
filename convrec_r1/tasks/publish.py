"""task=publish: a run's policy in the form of the Hugging Face Hub, with a model card; and its upload."""

import logging
from pathlib import Path

from convrec_r1.base.progress import console
from convrec_r1.base.visible import visible
from convrec_r1.config.schema import Config
from convrec_r1.modules.memory import size
from convrec_r1.serve.hub.folder import write_folder
from convrec_r1.serve.hub.trained import read_trained
from convrec_r1.serve.hub.upload import upload

_log = logging.getLogger(__name__)


def publish(cfg: Config) -> None:
    """Write the folder of `cfg.checkpoint`, and upload it to `cfg.hub` unless `publish.dry_run` is true."""
    assert cfg.checkpoint is not None  # serve/hub/config.py
    options = cfg.publish
    run = read_trained(cfg.checkpoint)
    folder = Path(options.folder).expanduser() if options.folder else run.folder.hub
    files = write_folder(run, folder, cfg.hub or run.folder.path.name, options)
    for file in files:
        _say(f"  {size(file.stat().st_size):>10}  {file.relative_to(folder)}")
    if options.catalog and run.package.catalog is not None:
        _log.warning(
            "The folder holds the catalog (%d titles with their metadata). publish.catalog=false leaves it out, if it is not "
            "yours to publish.",
            len(run.package.catalog),
        )
    if options.dry_run:
        _say(f"Written to {folder}. Nothing was uploaded (publish.dry_run=true).")
        return
    assert cfg.hub is not None
    url = upload(folder, cfg.hub, private=options.private, message=f"{run.label}: {run.folder.path.name}")
    _say(f"Published: {url}")


def _say(text: str) -> None:
    console.print(visible(text), highlight=False, markup=False, soft_wrap=True)
