"""Options of task=publish. What is published and where is `checkpoint` and `hub`, beside this section."""

import re
from dataclasses import dataclass, field

from convrec_r1.base.options import option

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass
class PublishConfig:
    """What is written for the Hub, and who sees it."""

    dry_run: bool = False
    """Write the folder, and upload nothing."""
    folder: str | None = None
    """Where the folder is written. null: RUN/hub."""
    private: bool = True
    """Only you, or your organisation, see the repository. A public one needs false."""
    license: str | None = None
    """Licence of the published weights, by the Hub's name for it: apache-2.0, mit, cc-by-nc-4.0, llama3.2, other. It must fit
    the licences of the base model and of the data. An upload needs it; a dry run leaves a place to fill in."""
    catalog: bool = True
    """Publish the catalog's titles, years and metadata too. false if you may not: users then bring a catalog of their own."""
    datasets: list[str] = field(default_factory=list)
    """Hub ids of the datasets that the policy was trained on, for the card."""
    language: list[str] = field(default_factory=list)
    """Codes of the languages of the conversations, for the card: en, de."""
    title: str | None = option(None, hint="null: the name on the Hub.")
    """Heading of the card."""


def problems(cfg: PublishConfig, checkpoint: str | None, hub: str | None) -> list[str]:
    """Return a sentence for each problem of task=publish."""
    wrong = []
    if not checkpoint:
        wrong.append("task=publish needs checkpoint=RUN: the folder of a finished run.")
    if hub is None and not cfg.dry_run:
        wrong.append(
            "task=publish needs hub=ORG/NAME: the repository's id. publish.dry_run=true writes the folder only."
        )
    if hub is not None and not _NAME.fullmatch(hub):
        wrong.append(f"hub={hub}: the id of a repository is ORG/NAME, of letters, digits, '-', '_' and '.'.")
    if cfg.license is not None and not _LICENSE.fullmatch(cfg.license):
        wrong.append(f"publish.license={cfg.license}: give the Hub's name of a licence, such as apache-2.0, or other.")
    if cfg.license is None and not cfg.dry_run:
        wrong.append(
            "publish.license is not set: give the licence of the weights, such as apache-2.0. It must fit the licences of the "
            "base model and of the data. publish.dry_run=true writes the folder without one."
        )
    return wrong
