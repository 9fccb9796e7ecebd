"""The project is extended from outside: a package of the user's with a reward, a metric, an adapter and an objective, one file
and one YAML each, trains, sweeps, evaluates and compares."""

import json
from pathlib import Path

import pytest
import wandb_offline
from support import assert_user_error, run_command

from convrec_r1.base.files import read_jsonl
from convrec_r1.evaluate.scoring import Evaluation

pytestmark = [pytest.mark.processes("extend"), pytest.mark.long]

PACKAGE = {
    "rewards.py": '''
import torch
from convrec_r1.reward import JudgedLists, Returns


class FirstHit:
    """Only the first hit of a list earns something."""

    def __init__(self, bonus: float = 1.0):
        self.bonus = bonus

    def __call__(self, lists: JudgedLists) -> Returns:
        first = (lists.relevance.cumsum(-1) == 1) & (lists.relevance == 1)
        ranks = self.bonus * first.float()
        return Returns(ranks, ranks.sum(-1))
''',
    "metrics.py": '''
from convrec_r1.evaluate.metrics.base import Label, Lists, Metric


class Shouting(Metric):
    """Share of a list's characters that are capital letters."""

    labels = {"shouting": Label("Capital letters", better="low", percent=True)}

    def per_list(self, lists: Lists):
        return {"shouting": [sum(c.isupper() for c in text) / max(1, len(text)) for text in lists.texts]}
''',
    "adapters.py": '''
import csv
from convrec_r1.data import Catalog, Conversation, Dataset, Message
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.lists import Item


class Table(Adapter):
    """A table of wishes: split, what was said, title, year."""

    def __init__(self, path, separator: str = ","):
        self.path, self.separator = path, separator

    def load(self) -> Dataset:
        splits = {"train": [], "validation": [], "test": []}
        items = []
        with open(self.path, newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter=self.separator)):
                item = Item(row[2], int(row[3]))
                items.append(item)
                said = (Message("user", row[1]),)
                splits[row[0]].append(
                    Conversation(str(number), str(number), said, (item,), split=row[0], demonstration=(item, *items[:3]))
                )
        return Dataset(Catalog(items), splits)
''',
    "objectives.py": '''
from convrec_r1.rl import LossInputs, LossOutputs


def reinforce(inputs: LossInputs, scale: float = 1.0) -> LossOutputs:
    """REINFORCE: no ratio, no clipping."""
    loss = inputs.aggregate(-scale * inputs.advantages * inputs.logps)
    return LossOutputs(loss, {"reinforce/advantage": (inputs.advantages * inputs.mask).mean().detach()})
''',
}
CONF = {
    "reward/first_hit.yaml": "_target_: mine.rewards.FirstHit\nname: first_hit\nbonus: 2.0\n",
    "metrics/shouting.yaml": "shouting:\n  _target_: mine.metrics.Shouting\n",
    "data/table.yaml": "name: table\n_target_: mine.adapters.Table\noptions:\n  separator: ';'\n"
    "domain: films\ninstruction: 'Recommend {n} films, one a line as Title (Year).'\n",
    "algo/reinforce.yaml": "name: reinforce\nadvantage: sequence\naggregation: token\nbeta: 0.0\n"
    "objective:\n  _target_: mine.objectives.reinforce\n  scale: 0.5\n",
}
FILMS = [("Heat", 1995), ("Alien", 1979), ("Fargo", 1996), ("Big", 1988), ("Jaws", 1975), ("Gravity", 2013)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder of the user's: mine/ (the package), conf/, wishes.csv."""
    home = tmp_path_factory.mktemp("home")
    for name, text in PACKAGE.items():
        (home / "mine").mkdir(exist_ok=True)
        (home / "mine" / name).write_text(text)
    for name, text in CONF.items():
        (home / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "conf" / name).write_text(text)
    rows = [
        f"{split};something like film {i % 6};{FILMS[i % 6][0]};{FILMS[i % 6][1]}"
        for split, count in (("train", 24), ("validation", 4), ("test", 6))
        for i in range(count)
    ]
    (home / "wishes.csv").write_text("\n".join(rows))
    return home


OWN = ("reward=first_hit", "algo=reinforce", "metrics=[default,shouting]", "data=table", "data.path=wishes.csv")
SMALL = ("debug=smoke", "rl.steps=2")


def command(home: Path, *arguments: str):
    return run_command("--config-dir", "conf", *arguments, *SMALL, cwd=home)


@pytest.fixture(scope="module")
def trained(home) -> Path:
    done = command(home, *OWN, "logger=wandb", "hydra.run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "run"


def test_one_run_uses_all_of_it(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert 0 < summary["metrics"]["reinforce"]["shouting"] < 1
    assert summary["labels"]["shouting"]["label"] == "Capital letters"
    records = read_jsonl(trained / "metrics.jsonl")
    assert any("test/shouting" in record["values"] for record in records)
    assert any("val/shouting" in record["values"] for record in records)
    train = [record["values"] for record in records if record["split"] == "train"]
    assert all("reinforce/advantage" in values for values in train)
    assert not any("clip_ratio/low_mean" in values for values in train)
    assert "Capital letters" in (trained / "report.md").read_text()
    recorded = wandb_offline.read(trained)
    assert recorded.tags == {"reinforce", "tiny", "table"}
    assert any("test/shouting" in row for row in recorded.history)
    samples = Evaluation.read_jsonl(trained / "eval" / "test.jsonl").samples
    assert all(0 <= sample.metrics["shouting"] <= 1 for sample in samples)


def test_the_same_command_finds_its_run_until_the_plug_in_changes(trained, home):
    again = command(home, *OWN, "logger=wandb", "hydra.run.dir=run")
    assert "complete" in again.stdout
    file = home / "mine" / "rewards.py"
    text = file.read_text()
    file.write_text(text + "\n# changed\n")
    try:
        assert_user_error(command(home, *OWN, "logger=wandb", "hydra.run.dir=run"), "sources", "mine.rewards.FirstHit")
    finally:
        file.write_text(text)


def test_a_sweep_an_evaluation_and_a_comparison_take_it_too(trained, home):
    swept = command(home, "-m", *OWN[2:], "algo=grpo,reinforce", "reward=first_hit,exp_inf", "logger=none", "study=own",
                    "eval.baselines=[]")  # fmt: skip
    assert swept.returncode == 0, swept.stdout + swept.stderr
    report = (home / "outputs" / "own" / "comparison" / "report.html").read_text()
    assert "Capital letters" in report
    evaluated = command(home, "task=eval", "checkpoint=run", *OWN[2:], "logger=none", "hydra.run.dir=judged")
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "shouting" in json.loads((home / "judged" / "summary.json").read_text())["metrics"]["run"]


def test_a_comparison_needs_no_code_of_the_runs_and_runs_none(trained, home, tmp_path):
    """Labels stand in the runs' folders as text. A `_target_` there names nothing to import."""
    compared = run_command("task=compare", f"runs={home}/outputs/own/*", "hydra.run.dir=compared", cwd=tmp_path)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "Capital letters" in (tmp_path / "compared" / "report.html").read_text()


def test_a_wrong_option_of_a_plug_in_names_itself(home):
    assert_user_error(command(home, *OWN, "reward.bonsu=1"), "reward.bonsu")
    assert_user_error(command(home, *OWN, "+reward.bonsu=1"), "reward.bonsu", "bonus")
    assert_user_error(command(home, *OWN, "data.options.separator=1", "+data.options.x=2"), "data", "x")
    assert_user_error(
        command(home, *OWN, "algo.objective._target_=mine.objectives.nothing"), "algo.objective", "nothing"
    )
