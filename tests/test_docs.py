"""The documentation says what is so: its commands compose, its files exist, its examples work."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from doc_examples import (
    PAGES,
    anchors,
    commands,
    headings,
    links,
    make_targets,
    shown,
    write_examples,
    write_tutorial_files,
)
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support import ROOT, tiny_policy

from convrec_r1.base.plugins import build
from convrec_r1.config import parts
from convrec_r1.config.checks import problems
from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.schema import Config
from convrec_r1.data import Catalog, Conversation, Message
from convrec_r1.lists import Item
from convrec_r1.matching import Matching
from convrec_r1.rl import LossInputs

COMMANDS = {tuple(arguments): page.name for page in PAGES for arguments in commands(page)}
"""Arguments -> a page that gives them."""
ELSEWHERE = re.compile(r"GPU|vLLM|an extra|not installed")
"""Problems of this machine, not of a command."""
FLAGS = {"-m", "--help", "--cfg", "job", "--config-dir", "my_conf"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with everything that the commands name."""
    home = tmp_path_factory.mktemp("home")
    write_examples(home)
    write_tutorial_files(home)
    (home / "DIR").mkdir()
    (home / "DIR" / "config.json").write_text("{}")
    (home / "FILE").write_text("title,year\nHeat,1995\n")
    (home / "RUN").mkdir()
    return home


@pytest.fixture(autouse=True)
def _at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))


def composed(*overrides: str) -> Config:
    """The config of a command with `--config-dir my_conf`."""
    GlobalHydra.instance().clear()
    search = f"hydra.searchpath=[file://{Path('my_conf').absolute()}]"
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        tree = compose("config", overrides=[*expand(overrides), search])
    OmegaConf.resolve(tree)
    return OmegaConf.to_object(tree)


def single_runs(arguments: list[str]) -> list[list[str]]:
    """The runs of a sweep, as far as every value is in one of them."""
    choices = []
    for override in OverridesParser.create().parse_overrides(arguments):
        name = override.get_key_element()
        swept = override.is_sweep_override()
        choices.append([f"{name}={v}" for v in override.sweep_string_iterator()] if swept else [override.input_line])
    longest = max(map(len, choices), default=1)
    return [[values[i % len(values)] for values in choices] for i in range(longest)]


@pytest.mark.long
@pytest.mark.parametrize("arguments", COMMANDS, ids=[f"{page}: {' '.join(a)}" for a, page in COMMANDS.items()])
def test_commands_compose_and_can_work(arguments):
    for overrides in single_runs([argument for argument in expand(arguments) if argument not in FLAGS]):
        assert [line for line in problems(composed(*overrides)) if not ELSEWHERE.search(line)] == []


def test_there_are_commands_on_many_pages():
    assert len(COMMANDS) > 70
    assert len(set(COMMANDS.values())) > 9


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_headings_and_make_targets_exist(page):
    for link in links(page):
        assert (page.parent / link).exists(), link
    for other, anchor in anchors(page):
        assert anchor in headings(other), f"{other.name}#{anchor}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert make_targets(page) <= targets


def test_readme_is_short_and_names_every_page():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 150
    named = {Path(link).name for link in links(readme)}
    assert {page.name for page in PAGES[1:]} <= named
    assert f"- {'Home'}: index.md" in (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page.name}" in (ROOT / "mkdocs.yml").read_text() for page in PAGES[1:])


def test_every_group_is_documented():
    text = (ROOT / "docs" / "config.md").read_text()
    folders = {str(path.parent.relative_to(conf_folder())) for path in conf_folder().rglob("*.yaml")} - {".", "rates"}
    assert {folder for folder in folders if f"`{folder}`" not in text} == set()


# The examples of docs/extend.md.

HEAT, FARGO, ALIEN = Item("Heat", 1995), Item("Fargo", 1996), Item("Alien", 1979)
CATALOG = Catalog([HEAT, FARGO, ALIEN])
ASKED = Conversation("c", "c", (Message("user", "Something like Thief?"),), (HEAT, FARGO))


def reward(cfg: Config) -> None:
    judge = parts.judge(cfg, CATALOG)
    feedback = judge([f"{HEAT}\n{ALIEN}", f"{FARGO}"], [ASKED, ASKED], torch.device("cpu"))
    assert feedback.returns[:, :2].tolist() == [[3.0, 0.0], [3.0, 0.0]]
    assert feedback.reward.tolist() == [3.0, 3.0]


def objective(cfg: Config) -> None:
    logps = torch.tensor([[-1.0, -2.0], [-3.0, torch.nan]], requires_grad=True)
    mask, ranks = torch.tensor([[1, 1], [1, 0]]), torch.tensor([[0, 1], [0, -1]])
    inputs = LossInputs(logps, logps.detach(), torch.ones(2, 2), mask, ranks, n=2, aggregation="token")
    loss, metrics = parts.objective(cfg)(inputs)
    assert loss.item() == pytest.approx(2.0)  # (1 + 2 + 3) / 3 tokens
    assert metrics["reinforce/logp"].item() == pytest.approx(-2.0)
    loss.backward()
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-1 / 3, -1 / 3])


def match(cfg: Config) -> None:
    rule = build(cfg.match, "match", Matching)
    assert rule.key("Alien: Director's Cut") == rule.key("ALIEN")
    assert rule.year_tolerance == 1
    assert CATALOG.find(Item("Alien: Director's Cut", 1979), rule) == ALIEN


def data(cfg: Config) -> None:
    from convrec_r1.data.load import load_data

    loaded = load_data(cfg.data, cfg.n, match=build(cfg.match, "match", Matching))
    assert [len(loaded[split]) for split in ("train", "validation", "test")] == [6, 2, 2]
    assert Item("Salt and Rope") in loaded.catalog
    assert loaded["train"][0].demonstration


def metrics(cfg: Config) -> None:
    from convrec_r1.evaluate.metrics.base import Lists, Metric
    from convrec_r1.evaluate.popularity import Popularity

    metric = build(cfg.metrics["first_hit"], "metrics.first_hit", Metric)
    hits = np.array([[0, 1, 1], [0, 0, 0]])
    popularity = Popularity.from_conversations([], CATALOG)
    rule = build(cfg.match, "match", Matching)
    lists = Lists(["", ""], [[], []], [[], []], hits, [ASKED, ASKED], CATALOG, popularity, rule, 3, [3])
    assert metric.per_list(lists)["first_hit"].tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
    assert metric.labels["first_hit"].better == "low"


def baselines(cfg: Config) -> None:
    from convrec_r1.evaluate.baselines import Baseline, Context
    from convrec_r1.evaluate.popularity import Popularity

    context = Context([ASKED], [], 20, CATALOG, Popularity.from_conversations([], CATALOG), lambda policy: None)
    baseline = build(cfg.baselines["anything"], "baselines.anything", Baseline)
    (text,) = baseline.lists(context)
    assert sorted(text.splitlines()) == sorted(map(str, CATALOG))
    assert baseline.lists(context) == [text]


def rollout(cfg: Config) -> None:
    from convrec_r1.rollout.base import Sampling, make_engine
    from convrec_r1.rollout.config import HFConfig

    policy = tiny_policy()
    prompts = [policy.tokenizer("Something like Heat?")["input_ids"], policy.tokenizer("A comedy")["input_ids"]]
    own, ours = (make_engine(c, policy, max_length=128) for c in (cfg.rollout, HFConfig()))
    greedy = Sampling(temperature=0, max_tokens=8)
    for engine in (own, ours):
        engine.sync(policy)
    for a, b in zip(own.generate(prompts, [0, 9], greedy), ours.generate(prompts, [0, 9], greedy), strict=True):
        assert a[0].ids.tolist() == b[0].ids.tolist()
        assert a[0].logprobs == pytest.approx(b[0].logprobs, abs=1e-4)
    drawn = own.generate(prompts, [1 << 40, 7], Sampling(n=2, max_tokens=4))
    alone = own.generate(prompts[1:], [7], Sampling(n=2, max_tokens=4))
    assert [c.ids.tolist() for c in drawn[1]] == [c.ids.tolist() for c in alone[0]]


def callbacks(cfg: Config) -> None:
    @dataclass
    class Module:
        step: int
        logged: dict[str, float]

        def log(self, name: str, value: float) -> None:
            self.logged[name] = value

    callback = build(cfg.callbacks["pace"], "callbacks.pace", pl.Callback)
    module: Any = Module(3, {})
    trainer: Any = None
    callback.on_train_start(trainer, module)
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert 0 <= module.logged["pace/minutes"] < 1


def loggers(cfg: Config) -> None:
    from pytorch_lightning.loggers import Logger

    logger = build(cfg.loggers["lines"], "loggers.lines", Logger)
    logger.log_metrics({"reward": 0.5}, step=3)
    assert Path("lines.tsv").read_text() == "3\treward\t0.5\n"


def teacher(cfg: Config) -> None:
    from convrec_r1.distill.questions import judge, recommend
    from convrec_r1.distill.teachers.base import make_teacher

    shelf = make_teacher(cfg.teacher, seed=0, sizes={})
    listed = asyncio.run(shelf.answer(recommend(ASKED, 3, "films")))
    assert listed.text.splitlines() == ["Alien (1979)", "Arrival (2016)", "Brazil (1985)"]
    rated = asyncio.run(shelf.answer(judge(ASKED, [HEAT, FARGO], "films")))
    assert rated.text.splitlines() == ["1: 1", "2: 1"]


def embedder(cfg: Config) -> None:
    from convrec_r1.distill.embedders.base import Embedder

    items, asked = build(cfg.embedder, "embedder", Embedder).embed(
        ["Heat (1995)", "Fargo (1996)"], ["User: like Heat?"]
    )
    assert items.shape == (2, 1024)
    assert (items[0] @ asked[0]) > (items[1] @ asked[0])
    assert np.linalg.norm(items, axis=1) == pytest.approx(1)


def algo(cfg: Config) -> None:
    assert cfg.algo.name == "rank_token"
    assert parts.objective(cfg).ratio == "token"


EXAMPLES: dict[str, tuple[Callable[[Config], None], tuple[str, ...]]] = {
    "reward/in_front": (reward, ("reward=in_front",)),
    "algo/reinforce": (objective, ("algo=reinforce", "algo.objective.kl_weight=0")),
    "match/without_subtitle": (match, ("match=without_subtitle",)),
    "data/shop": (data, ("data=shop", "data.path=shop", "n=5")),
    "metrics/first_hit": (metrics, ("metrics=[default,first_hit]",)),
    "baselines/anything": (baselines, ("baselines=[default,anything]",)),
    "rollout/one_by_one": (rollout, ("rollout=one_by_one",)),
    "callbacks/pace": (callbacks, ("callbacks=[pace]",)),
    "loggers/lines": (loggers, ("loggers=[lines]",)),
    "teacher/shelf": (teacher, ("teacher=shelf",)),
    "embedder/letters": (embedder, ("embedder=letters",)),
    "algo/rank_token": (algo, ("algo=rank_token",)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_work(name):
    use, overrides = EXAMPLES[name]
    use(composed(*overrides))


def test_every_example_is_tested():
    files = {name.removeprefix("my_conf/").removesuffix(".yaml") for name in shown() if name.endswith(".yaml")}
    assert files == EXAMPLES.keys()
