"""What a config names by `_target_` is built, or refused with the key, the path and what to do."""

import sys
from dataclasses import dataclass, field
from hashlib import blake2b

import pytest
from omegaconf import OmegaConf
from support import compose_config

from convrec_r1.base.errors import UserError
from convrec_r1.base.options import option, out_of_bounds
from convrec_r1.base.plugins import build, source_digests, targets
from convrec_r1.reward.base import Reward
from convrec_r1.reward.config import RankRewardConfig
from convrec_r1.reward.rank import RankReward
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.identity import identity, left_out, with_sources

OWN = """
from dataclasses import dataclass

@dataclass
class Options:
    weight: float = 1.0

class Plain:
    def __init__(self, weight=1.0, catalog=None):
        if weight < 0:
            raise ValueError("weight below 0")
        self.weight, self.catalog = weight, catalog
    def __call__(self, lists):
        return self.weight

class Typed:
    def __init__(self, options: Options):
        self.options = options
    def __call__(self, lists):
        return self.options.weight

class NoCall:
    pass

def function(lists, weight=2.0):
    return weight
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of the user's, on the path."""
    (tmp_path / "own_package").mkdir()
    file = tmp_path / "own_package" / "rewards.py"
    file.write_text(OWN)
    (tmp_path / "own_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    for name in [name for name in sys.modules if name.split(".")[0] == "own_package"]:
        del sys.modules[name]


def node(name: str, /, **options):
    return {"_target_": f"own_package.rewards.{name}", **options}


def test_a_class_takes_its_options_as_keyword_arguments_or_as_a_dataclass(own):
    assert build(node("Plain", weight=3), "reward", Reward)(None) == 3
    assert build(node("Typed", weight=3), "reward", Reward)(None) == 3
    assert build(OmegaConf.create(node("Typed")), "reward", Reward)(None) == 1
    assert build(node("function", weight=5), "reward", Reward, function=True)(None) == 5
    assert isinstance(build(RankRewardConfig(name="x"), "reward", Reward), RankReward)


def test_what_the_project_passes_goes_to_the_parameters_that_want_it(own):
    assert build(node("Plain"), "reward", catalog="C", policy="P").catalog == "C"
    assert build(node("Typed"), "reward", catalog="C").options.weight == 1


def test_a_name_is_for_folders_and_reports_unless_the_class_wants_it(own):
    assert build(node("Plain", name="mine"), "reward", Reward)(None) == 1


@pytest.mark.parametrize(
    ("made", "fragments"),
    [
        (node("Plain", wieght=1), ("reward.wieght", "weight")),
        (node("Typed", wieght=1), ("reward", "wieght")),
        (node("Typed", weight="heavy"), ("reward", "heavy")),
        (node("Plain", weight=-1), ("reward", "ValueError", "weight below 0")),
        (node("NoCall"), ("reward._target_", "not a Reward")),
        (node("Missing"), ("reward._target_", "own_package.rewards.Missing", "path")),
        ({"_target_": "no_such_package.X"}, ("reward._target_", "no_such_package", "PYTHONPATH")),
        ({"weight": 1}, ("reward has no _target_",)),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_key(own, made, fragments):
    with pytest.raises(UserError) as refused:
        build(made, "reward", Reward)
    assert all(fragment in str(refused.value) for fragment in fragments), refused.value


def test_a_run_is_another_one_once_its_plug_in_has_changed(own):
    config = {"reward": node("Plain"), "algo": {"name": "grpo"}, "task": {"name": "train"}}
    before = identity(with_sources(config), ())
    assert source_digests(config).keys() == {"own_package.rewards.Plain"}
    assert identity(with_sources(config), ()) == before
    own.write_text(OWN + "\nCHANGED = True\n")
    assert identity(with_sources(config), ()) != before
    assert source_digests({"reward": {"_target_": "convrec_r1.reward.rank.RankReward"}}) == {}


def test_targets_are_found_at_any_depth():
    tree = {"a": {"_target_": "x.Y", "b": [{"_target_": "z.W"}]}, "c": 1}
    assert targets(tree) == {"a": "x.Y", "a.b.0": "z.W"}


@dataclass
class Inner:
    rate: float = option(0.5, above=0, below=1)
    retries: int = option(3, least=0, identity=False)


@dataclass
class Outer:
    mode: str | None = option("fast", choices=("fast", "slow"))
    ks: list[int] = option(factory=lambda: [5], least=1, hint="Give cut-offs.")
    inner: Inner = field(default_factory=Inner)
    places: Inner = option(factory=Inner, identity=False)
    free: float = 1.0


def test_bounds_stand_at_the_field():
    assert out_of_bounds(Outer()) == []
    assert out_of_bounds(Outer(mode=None)) == []
    wrong = out_of_bounds(Outer(mode="lazy", ks=[5, 0], inner=Inner(rate=1.0), free=float("nan")))
    assert wrong == [
        "mode=lazy: choose one of fast, slow.",
        "ks=0: must be at least 1. Give cut-offs.",
        "inner.rate=1.0: must be below 1.",
        "free=nan is not a number.",
    ]


def test_the_identity_is_told_by_the_fields():
    cfg = OmegaConf.structured(Outer())
    assert left_out(cfg) == {"inner.retries", "places"}
    plain = {"task": {"name": "train"}, **OmegaConf.to_container(cfg)}
    assert set(identity(plain, left_out(cfg))) == {"task.name", "mode", "ks", "inner.rate", "free"}


@pytest.mark.parametrize("folders", [[], ["package"], ["no_init"], ["no_init", "inner"], ["no_init", "package"]])
def test_the_plug_ins_file_is_known_before_it_is_imported(tmp_path, monkeypatch, folders):
    """A run's folder is named before anything of the user's is imported. Folders need no __init__.py."""
    place = tmp_path.joinpath(*folders)
    place.mkdir(parents=True, exist_ok=True)
    code = f"open({str(tmp_path / 'imported')!r}, 'w')"
    (place / "never_imported.py").write_text(code)
    if "package" in folders:
        (place / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    path = ".".join([*folders, "never_imported", "X"])
    digest = source_digests({"reward": {"_target_": path}})[path]
    assert digest == blake2b(code.encode(), digest_size=8).hexdigest()
    assert not {"never_imported", "no_init", "package"} & {name.split(".")[0] for name in sys.modules}
    assert not (tmp_path / "imported").exists()


def test_what_a_runs_folder_names_is_not_looked_for(tmp_path, monkeypatch):
    """Finding the source of a plug-in imports its package: for this command's own config only."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = RunFolder(tmp_path / "run")
    cfg = compose_config()
    folder.begin(cfg)
    stored = OmegaConf.load(folder.config)
    stored.reward._target_ = "planted.rewards.X"
    folder.config.write_text(OmegaConf.to_yaml(stored))
    with pytest.raises(UserError, match=r"planted\.rewards\.X there"):
        folder.begin(cfg)
    assert not (tmp_path / "was_here").exists()
