"""The W&B workspace of a study, as code: which panels, on which axes, of which runs, and how they are grouped.

W&B's automatic panels have one line per run on W&B's own step. Here the axes are our steps, and there is one line per
algorithm and reward: the mean over seeds, with a band from the lowest to the highest.

`build` needs neither key nor network; `publish` uploads. A panel stays empty if no run of the study logged its metric:
`sft` has no reward, and `kl` needs algo.beta > 0.
"""

import logging
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from convrec_r1.base.errors import UserError
from convrec_r1.run.config import LoggerConfig
from convrec_r1.run.tracker import SPLIT_STEPS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace  # pyright: ignore[reportMissingImports]  # optional

_log = logging.getLogger(__name__)

GROUPS = ("algo.name", "reward.name")
"""Config keys by which runs are grouped; runs of one group differ in the seed."""

# wandb-workspaces writes a filter as an expression and parses it again: quotes and comparisons would break it.
_NAME = re.compile(r"""[^'"\\=<>\x00-\x1f]+""")


class Plot(NamedTuple):
    """A line plot of metrics over `axis`."""

    title: str
    metrics: tuple[str, ...]
    axis: str = "step"


def plots(n: int, ks: Sequence[int]) -> dict[str, list[Plot]]:
    """Return the line plots of each section, for lists of `n` that are measured at the cut-offs `ks`."""
    sft = SPLIT_STEPS["sft"]
    ranks = [f"rank/{k}/reward" for k in range(1, n + 1)]
    return {
        "Learning": [
            Plot("Reward", ("reward",)),
            *(Plot(f"Validation NDCG@{k}", (f"val/ndcg@{k}",)) for k in ks),
            *(Plot(f"Validation Recall@{k}", (f"val/recall@{k}",)) for k in ks),
            Plot("Spread of rewards within groups", ("reward_std",)),
            Plot("Units without spread", ("frac_reward_zero_std",)),
            Plot("SFT loss", ("sft/loss",), sft),
            Plot("SFT loss, validation", ("sft/validation_loss",), sft),
        ],
        "Ranks": [
            *([Plot(f"Ranks 1 and {n}", (ranks[0], ranks[-1]))] if n > 1 else []),
            *(Plot(f"Rank {k}", (name,)) for k, name in enumerate(ranks, 1)),
        ],
        "Stability": [
            Plot("KL to the reference", ("kl",)),
            Plot("Entropy", ("entropy",)),
            Plot("Gradient norm", ("grad_norm",)),
            Plot("Clipped at the lower bound", ("clip_ratio/low_mean",)),
            Plot("Clipped at the upper bound", ("clip_ratio/high_mean",)),
            Plot("Clipped at either bound", ("clip_ratio/region_mean",)),
            Plot("Ratio, largest", ("ratio/max",)),
            Plot("Sampler against trainer, mean difference", ("sampling/sampling_logp_difference/mean",)),
            Plot("Sampler against trainer, largest difference", ("sampling/sampling_logp_difference/max",)),
            Plot("Importance weight, mean", ("sampling/importance_sampling_ratio/mean",)),
            Plot(
                "Importance weight, extremes",
                ("sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/max"),
            ),
            Plot("Tokens whose weight was cut", ("sampling/correction_active",)),
            Plot("Age of the sampler's weights", ("sampling/staleness",)),
        ],
        "Catalog": [
            Plot("In the catalog", ("catalog/valid",)),
            Plot("In the catalog, validation", ("val/catalog/valid",)),
            Plot("Well formed", ("format/valid",)),
            Plot("Length of the list", ("list/length",)),
            Plot("Repeats", ("list/duplicates",)),
            Plot("Repeats, validation", ("val/list/duplicates",)),
            Plot("Already seen", ("list/seen",)),
        ],
        "Speed": [
            Plot("Seconds a step", ("time/step",)),
            *(Plot(f"Seconds: {part}", (f"time/{part}",)) for part in ("rollout", "reward", "train", "wait", "sync")),
            Plot("Tokens a second, RL", ("tokens_per_second",)),
            Plot("Tokens a second, SFT", ("sft/tokens_per_second",), sft),
        ],
    }


def build(
    study: str, entity: str | None, project: str, *, n: int = 20, ks: Sequence[int] = (5, 10, 15, 20)
) -> "Workspace":
    """Return the workspace of a study. `.save()` of the result uploads it.

    Args:
        study: Name of the study: the W&B group of its runs.
        entity: W&B user or team. None: to be set before saving.
        project: W&B project.
        n: Length of the study's lists.
        ks: Cut-offs at which they are measured.

    Raises:
        UserError: wandb-workspaces is not installed, or W&B cannot filter by the study's name.
    """
    try:
        from wandb_workspaces import workspaces as ws  # pyright: ignore[reportMissingImports]
        from wandb_workspaces.reports.v2 import LinePlot  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "A W&B workspace is built with wandb-workspaces, which is not installed: pip install 'convrec-r1[workspace]'."
        ) from error
    if not _NAME.fullmatch(study):
        raise UserError(rf"study={study!r}: W&B cannot filter by a name with quotes, \, =, < or > in it.")
    sections = [
        ws.Section(
            name=name,
            is_open=name in ("Learning", "Ranks"),
            panels=[
                LinePlot(
                    title=plot.title, x=plot.axis, y=list(plot.metrics), groupby_aggfunc="mean", groupby_rangefunc="minmax"
                )
                for plot in section
            ],
            panel_settings=ws.SectionPanelSettings(x_axis="step"),
        )
        for name, section in plots(n, ks).items()
    ]  # fmt: skip
    return ws.Workspace(
        name=f"Study {study}",
        entity=entity or "",
        project=project,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),  # groups count as runs; the default is 10
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == study), groupby=[ws.Config(key) for key in GROUPS]
        ),
    )


def publish(study: str, logger: LoggerConfig, *, n: int, ks: Sequence[int]) -> str:
    """Upload the workspace of a study to the project of `logger` and return its URL (task=workspace).

    Every call saves a new view. Runs appear in it once they are uploaded (`wandb sync`). `n` and `ks` come from the config:
    give the overrides that the study's runs were given.

    Raises:
        UserError: A package, a key, an entity or the connection is missing.
    """
    built = build(study, logger.entity, logger.project, n=n, ks=ks)
    import wandb

    where = f"{logger.entity or 'your default entity'}/{logger.project}"
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
    except Exception as error:  # uploads raise errors of many kinds, some of them private to wandb
        raise UserError(
            f"W&B did not take the workspace for {where} ({type(error).__name__}: {error}). Check the key, logger.entity, "
            "logger.project, and the connection."
        ) from error
    if not built.entity:
        raise UserError(
            "This W&B account has no default entity: name the owner of the project with logger.entity=NAME."
        )
    _log.info("Workspace of study %s: %s", study, built.url)
    return built.url
