"""The command line's own words: --help, and short forms of `model=`."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from support import PATHS, make_config

from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.help import EXAMPLES, GROUPS, help_text

INNER = {"rates"}
"""Groups that follow from others."""


def test_help_names_every_group_and_every_choice():
    text = help_text()
    folders = {
        str(path.parent.relative_to(conf_folder()))
        for path in conf_folder().rglob("*.yaml")
        if path.parent != conf_folder()
    }
    assert folders - INNER == {group for group in GROUPS if (conf_folder() / group).is_dir()}
    for folder in folders - INNER:
        for path in (conf_folder() / folder).glob("*.yaml"):
            assert path.stem in text
    assert len(EXAMPLES) == 4
    assert "--cfg job" in text
    assert len(text.splitlines()) < 70


def test_help_lists_choices_of_a_folder_of_the_users(tmp_path):
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "my_own_reward.yaml").write_text("_target_: x.Y\n")
    assert "my_own_reward" not in help_text()
    for arguments in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        assert "my_own_reward" in help_text(arguments)


@pytest.mark.processes
def test_help_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.argv[1:] = ['--help']; import convrec_r1.cli as c; c.main(); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=PATHS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ConvRec-R1")


def test_one_model_by_its_id_or_folder():
    assert expand(["model=Org/Name-1B"]) == ["model=hub", "model.path=Org/Name-1B", "model.name=Name-1B"]
    assert expand(["model=/a/folder/"])[:2] == ["model=hub", "model.path=/a/folder/"]
    assert expand(["model=tiny", "seed=1"]) == ["model=tiny", "seed=1"]
    cfg = make_config("model=Org/Name-1B")
    assert (cfg.model.path, cfg.model.name, cfg.recipe.name) == ("Org/Name-1B", "Name-1B", "paper")


def test_several_models_in_a_sweep_mix_with_names():
    arguments = ["model=tiny,Org/First-1B,Other/Second.5"]
    assert expand(arguments) == arguments
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cells = [compose("config", overrides=[f"model={name}"]) for name in arguments[0].partition("=")[2].split(",")]
    assert [cell.model.name for cell in cells] == ["tiny", "First-1B", "Second.5"]
    assert [cell.model.path for cell in cells] == [None, "Org/First-1B", "Other/Second.5"]
    assert [cell.recipe.name for cell in cells] == ["tiny", "paper", "paper"]
    assert cells[1].model.max_prompt_length == 2048
