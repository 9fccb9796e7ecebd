"""The W&B workspace of a study: its panels, axes, filter and grouping.

The x-axes are the project's own steps. There is one line per algorithm and reward: the mean over seeds, with a band from
the lowest to the highest seed. A panel is empty if no run logged its metric: `sft` has no reward, `kl` needs algo.beta > 0.
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
"""Config keys that group the runs. Runs of one group differ in the seed."""

# wandb-workspaces writes a filter as an expression and parses it again. Quotes and comparisons break the expression.
_NAME = re.compile(r"""[^'"\\=<>\x00-\x1f]+""")


class Plot(NamedTuple):
    """A line plot of metrics over `axis`."""

    title: str
    metrics: tuple[str, ...]
    axis: str = "step"


def plots(n: int, ks: Sequence[int]) -> dict[str, list[Plot]]:
    """Return the line plots of each section, for lists of `n` items and cut-offs `ks`."""
    sft = SPLIT_STEPS["sft"]
    ranks = [f"rank/{k}/reward" for k in range(1, n + 1)]
    return {
        "Learning": [
            Plot("Reward", ("reward",)),
            *(Plot(f"Validation NDCG@{k}", (f"val/ndcg@{k}",)) for k in ks),
            *(Plot(f"Validation Recall@{k}", (f"val/recall@{k}",)) for k in ks),
            Plot("Standard deviation of rewards within groups", ("reward_std",)),
            Plot("Groups with equal rewards", ("frac_reward_zero_std",)),
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
            Plot("Clipped at one of the bounds", ("clip_ratio/region_mean",)),
            Plot("Ratio, maximum", ("ratio/max",)),
            Plot("Log-probs of sampler and trainer, mean difference", ("sampling/sampling_logp_difference/mean",)),
            Plot("Log-probs of sampler and trainer, largest difference", ("sampling/sampling_logp_difference/max",)),
            Plot("Importance weight, mean", ("sampling/importance_sampling_ratio/mean",)),
            Plot(
                "Importance weight, minimum and maximum",
                ("sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/max"),
            ),
            Plot("Tokens with a truncated or masked weight", ("sampling/correction_active",)),
            Plot("Stale weights: steps behind the trainer", ("sampling/staleness",)),
        ],
        "Catalog": [
            Plot("In the catalog", ("catalog/valid",)),
            Plot("In the catalog, validation", ("val/catalog/valid",)),
            Plot("Well formed", ("format/valid",)),
            Plot("Length of the list", ("list/length",)),
            Plot("Repeats", ("list/duplicates",)),
            Plot("Repeats, validation", ("val/list/duplicates",)),
            Plot("Seen titles", ("list/seen",)),
        ],
        "Speed": [
            Plot("Seconds per step", ("time/step",)),
            *(Plot(f"Seconds: {part}", (f"time/{part}",)) for part in ("rollout", "reward", "train", "sync")),
            Plot("Tokens per second, RL", ("tokens_per_second",)),
            Plot("Tokens per second, SFT", ("sft/tokens_per_second",), sft),
        ],
    }


def build(
    study: str, entity: str | None, project: str, *, n: int = 20, ks: Sequence[int] = (5, 10, 15, 20)
) -> "Workspace":
    """Return the workspace of a study. It needs no key and no network; its method `save` uploads it.

    Args:
        study: Name of the study, which is the W&B group of its runs.
        entity: W&B user or team. None: set it before saving.
        project: W&B project.
        n: Length of the lists.
        ks: Cut-offs of the metrics.

    Raises:
        UserError: wandb-workspaces is not installed, or W&B cannot filter by the study's name.
    """
    try:
        from wandb_workspaces import workspaces as ws  # pyright: ignore[reportMissingImports]
        from wandb_workspaces.reports.v2 import LinePlot  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "task=workspace needs wandb-workspaces, which is not installed: pip install 'convrec-r1[workspace]'."
        ) from error
    if not _NAME.fullmatch(study):
        raise UserError(rf"study={study!r}: W&B cannot filter by a name with quotes, \, =, < or >. Rename the study.")
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
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),  # W&B shows 10 groups by default
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == study), groupby=[ws.Config(key) for key in GROUPS]
        ),
    )


def publish(study: str, logger: LoggerConfig, *, n: int, ks: Sequence[int]) -> str:
    """Upload the workspace of a study to the project of `logger` and return its URL (task=workspace).

    Every call saves a new view. It shows the runs that are uploaded (`wandb sync`). `n` and `ks` come from the config, so use
    the same overrides as the runs of the study.

    Raises:
        UserError: A package, a key, an entity or the connection is missing.
    """
    built = build(study, logger.entity, logger.project, n=n, ks=ks)
    import wandb

    where = f"{logger.entity or 'your default entity'}/{logger.project}"
    try:
        if not wandb.login(prompt=False, verify=False):
            unset = f" and unset WANDB_MODE={os.environ['WANDB_MODE']}" if os.environ.get("WANDB_MODE") else ""
            raise UserError(f"No W&B key was found: set WANDB_API_KEY, or run `wandb login` once{unset}.")
        if not built.entity:
            built.entity = wandb.Api().default_entity or ""
        if not built.entity:
            raise UserError("This W&B account has no default entity: set logger.entity to the owner of the project.")
        built.save()
    except UserError:
        raise
    except Exception as error:  # an upload raises errors of many types, some private to wandb
        raise UserError(
            f"W&B refused the workspace for {where} ({type(error).__name__}: {error}). Check the key, logger.entity, "
            "logger.project and the connection."
        ) from error
    _log.info("Workspace of study %s: %s", study, built.url)
    return built.url
