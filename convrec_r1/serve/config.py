"""Options of the tasks that use a policy: task=recommend, task=chat, task=serve."""

from dataclasses import dataclass

from convrec_r1.base.options import option
from convrec_r1.rollout.config import ConstraintChoice
from convrec_r1.serve.http import config as http

TASKS = ("recommend", "chat", "serve")
"""Tasks that load a policy and nothing else. They write no run folder."""


@dataclass
class AskKeys:
    """What is asked: keys of the config without a section."""

    message: str | None = option(None, identity=False)
    """task=recommend: what the user says."""
    input: str | None = option(None, identity=False)
    """task=recommend: a JSON Lines file of conversations."""
    output: str | None = option(None, identity=False)
    """task=recommend: the JSON Lines file that answers to `input` are added to."""
    where: str | None = option(None, identity=False)
    """Condition on the items, such as genre=comedy and year>1990 (docs/recommend.md)."""
    seen: list[str] = option(factory=list, identity=False)
    """Titles that the user has seen."""
    exclude: list[str] = option(factory=list, identity=False)
    """More items that are left out, as Title (Year)."""
    host: str = option("127.0.0.1", identity=False)
    """task=serve: where it listens. 0.0.0.0: on all networks of this machine."""
    port: int = option(8000, least=0, most=65535, identity=False)
    """task=serve. 0: any port that is free."""


@dataclass
class ServeConfig(http.HttpConfig):
    """How a policy is used: section `serve`. With task=serve, n, temperature, top_p and top_k are those of requests that do not
    say."""

    constraint: ConstraintChoice = ConstraintChoice.catalog
    """catalog: every line is an item of the catalog, none twice, none seen. none: the policy writes what it likes."""
    catalog: str | None = None
    """File of the catalog, in place of the policy's own. null: the policy's own."""
    n: int | None = option(None, least=1)
    """Recommendations in a list: `n=N` sets it. null: as many as the policy was trained to give."""
    temperature: float = option(0.0, least=0, most=100)
    """0: greedy, the list that evaluations judge."""
    top_p: float = option(1.0, above=0, most=1)
    top_k: int = option(0, least=0)
    """0: all tokens."""
    seed: int = option(0, least=0)
    """Of lists with `serve.temperature` above 0."""
    dtype: str = option("float32", choices=("float32", "bfloat16"))
    """Of the weights."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    limit: int = option(256, least=1)
    """Unanswered requests from which on another one is refused."""


def problems(keys: AskKeys, task: str, checkpoint: str | None) -> list[str]:
    """Return a sentence for each problem of a task of `TASKS`."""
    wrong = []
    if not checkpoint:
        wrong.append(f"task={task} needs checkpoint=RUN: a run's folder, a policy's folder or a Hub id.")
    if task == "recommend":
        if (keys.message is None) == (keys.input is None):
            wrong.append('task=recommend needs message="..." or input=FILE.jsonl, one of both.')
        elif (keys.input is None) != (keys.output is None):
            wrong.append("input=FILE.jsonl and output=FILE.jsonl belong together.")
    return [*wrong, *(http.problems() if task == "serve" else [])]
