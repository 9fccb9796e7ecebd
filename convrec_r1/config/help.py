"""The text of `--help`: examples, and all groups with their choices, read from conf/."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from convrec_r1.config.files import conf_folder

EXAMPLES = (
    ("python -m convrec_r1", "warm start, Rank-GRPO and evaluation on embedded data: minutes on a CPU"),
    (
        "python -m convrec_r1 algo=grpo model=qwen2.5-0.5b data=redial data.path=DIR",
        "another algorithm, model, dataset",
    ),
    ("python -m convrec_r1 -m algo=grpo,rank_grpo seed=1,2,3", "a sweep, compared at its end"),
    ("python -m convrec_r1 task=eval checkpoint=RUN", "evaluate a run, a policy's folder or a Hub model"),
)
GROUPS = {
    "task": "what the command does",
    "algo": "the algorithm",
    "algo/shaping": "advantages for ending a list at its n-th line",
    "reward": "what a rank and a list earn",
    "match": "when two titles are the same item",
    "model": "the language model; also any Hub id or folder: model=Qwen/Qwen3-0.6B",
    "recipe": "learning rates, steps and batch sizes; by default the model's own, else the paper's",
    "data": "the dataset",
    "rollout": "the engine that samples lists",
    "trainer": "hardware and checkpoints",
    "cluster": "this machine, or Ray on one or many",
    "logger": "where metrics go besides metrics.jsonl",
    "eval": "the evaluation",
    "metrics": "metrics of an evaluation, several at a time: metrics=[default,mine]",
    "baselines": "what a trained policy has to beat: baselines=[default,mine]",
    "teacher": "the black-box model that Stage 1 asks",
    "embedder": "how near two texts are, for Stage 1",
    "distill": "parts of Stage 1",
    "scale": "the size of a study",
    "experiment": "named studies",
    "debug": "any run in a few steps",
}
"""Groups and what they choose."""


def help_text(arguments: Sequence[str] = ()) -> str:
    """Return the text of --help.

    Args:
        arguments: The command line. Choices in its --config-dir are listed too.
    """
    folders = [conf_folder(), *_config_dirs(arguments)]
    lines = [
        "ConvRec-R1: train a language model that answers a conversation with a ranked list of catalog items.",
        "",
        "Usage: python -m convrec_r1 [GROUP=CHOICE ...] [KEY=VALUE ...]        -m: a sweep over values with commas",
        "",
        "Examples:",
        *(f"  {command}\n      {what}" for command, what in EXAMPLES),
        "",
        "Groups and their choices:",
    ]
    for group, what in GROUPS.items():
        choices = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        if choices:
            lines += [f"  {group}: {what}", f"      {' '.join(choices)}"]
    lines += [
        "",
        "Every key with its value: python -m convrec_r1 --cfg job     Hydra's own flags: --hydra-help",
        "Your own choices: --config-dir DIR (docs/extend.md). Documentation: README.md and docs/ of the project.",
    ]
    return "\n".join(lines)


def _config_dirs(arguments: Sequence[str]) -> list[Path]:
    found = []
    for flag, value in itertools.pairwise([*arguments, ""]):
        if flag in ("--config-dir", "-cd"):
            found.append(Path(value))
        elif flag.startswith("--config-dir="):
            found.append(Path(flag.partition("=")[2]))
    return found
