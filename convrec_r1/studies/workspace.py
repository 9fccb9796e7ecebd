"""A W&B workspace for a study, as code: which panels, on which axes, of which runs, grouped how.

W&B makes panels of its own for everything that is logged, on its own step and one line a run. A study is read another
way: on our steps, one line an algorithm and reward, the seeds averaged, with a band from the least to the greatest.

Building needs neither key nor network (`tasks/workspace.py` publishes). A panel of a metric that no run of the study
has logged stays empty: `sft` has no reward, and `kl` needs algo.beta > 0.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from convrec_r1.base.errors import UserError
from convrec_r1.run.tracker import SPLIT_STEPS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace  # pyright: ignore[reportMissingImports]  # optional

GROUPS = ("algo.name", "reward.name")
"""Keys of the config by which runs are put together; what is left to differ within a group is the seed."""

_NAME = re.compile(r"""[^'"\\=<>\x00-\x1f]+""")
"""wandb-workspaces writes a filter out as an expression and reads it back: quotes and comparisons would not survive."""


class Plot(NamedTuple):
    title: str
    metrics: tuple[str, ...]
    axis: str = "step"


def plots(n: int, ks: Sequence[int]) -> dict[str, list[Plot]]:
    """The line plots of each section, for lists of `n` that are measured at `ks`."""
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
    """The workspace of the runs whose group is `study`, not yet saved: `.save()` of the result uploads it.

    `entity`: user or team; None leaves it open, and must be put right before saving. `n`, `ks`: length of the study's
    lists and where they are measured. UserError where wandb-workspaces is missing, and for names that it cannot filter by.
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
