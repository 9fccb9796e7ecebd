"""Launchers whose number of processes agrees with the config, and those whose does not."""

import re

import pytest
from support import assert_user_error, make_config, run_command, unresolved_config

from convrec_r1.config.checks import problems as config_problems
from convrec_r1.modules.config import TrainerConfig
from convrec_r1.modules.launch import LAUNCHERS, Launch, launched, problems

SLURM = {
    "SLURM_JOB_NAME": "train",
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STARTED = {
    "torchrun": lambda n: {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(n), "RANK": "0", "LOCAL_RANK": "0"},
    "Slurm": lambda n: {**SLURM, "SLURM_NTASKS": str(n), "SLURM_NTASKS_PER_NODE": str(n), "SLURM_NNODES": "1"},
    "LSF": lambda n: {"LSB_JOBID": "1", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": str(n)},
    "a launcher": lambda n: {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": str(n)},
}  # fmt: skip


def trainer(devices: int | None, nodes: int = 1) -> TrainerConfig:
    return TrainerConfig(name="x", devices=devices, nodes=nodes)


@pytest.mark.parametrize("by", STARTED)
@pytest.mark.parametrize("started", [1, 2, 4])
def test_the_number_of_processes_must_be_the_configs(by, started):
    environment = STARTED[by](started)
    assert launched(environment)[:3] == Launch(by, next(v for name, v, *_ in LAUNCHERS if name == by), started, "")[:3]
    assert problems(trainer(started), trains=True, environment=environment) == []
    assert problems(trainer(None), trains=True, environment=environment) == [], "null: as many as were started"
    for devices in {1, 2, 4} - {started}:
        (wrong,) = problems(trainer(devices), trains=True, environment=environment)
        assert f"{by} started {started} process" in wrong
        assert f"trainer.devices={devices} x trainer.nodes=1 need {devices}" in wrong
        assert ("never be used" in wrong) == (started < devices)
    wrong = problems(trainer(2), trains=False, environment=environment)
    assert bool(wrong) == (started > 1), "an evaluation is one process"


def test_half_of_the_prompts_is_said_to_be_half():
    (wrong,) = problems(trainer(2), trains=True, environment=STARTED["Slurm"](1))
    assert "50% of every step's prompts would never be used. Start `srun --nodes=1 --ntasks-per-node=2" in wrong
    assert wrong.endswith("or set trainer.devices=1.")


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_mpirun_is_refused_because_its_ranks_are_not_read(variable):
    (wrong,) = problems(trainer(2), trains=True, environment={variable: "2"})
    assert "start with torchrun or srun" in wrong
    assert problems(trainer(1), trains=True, environment={variable: "1"}) == []


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**SLURM, "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"},
        {**SLURM, "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"},
        {"WORLD_SIZE": "8"},
        {"SLURM_JOB_ID": "4711"},
    ],
)
def test_where_lightning_starts_the_processes_itself(environment):
    assert launched(environment) is None
    assert problems(trainer(2), trains=True, environment=environment) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SLURM_NTASKS_PER_NODE": ""}, "needs --ntasks-per-node"),
        (
            {"SLURM_NTASKS_PER_NODE": "1"},
            r"starts 1 processes on a node \(SLURM_NTASKS_PER_NODE\), but trainer.devices=2",
        ),
        ({"SLURM_NNODES": "2"}, r"uses 2 nodes \(SLURM_NNODES\), but trainer.nodes=1"),
    ],
)
def test_what_lightning_would_refuse_with_a_trace(changes, says):
    (wrong,) = problems(trainer(2), trains=True, environment=STARTED["Slurm"](2) | changes)
    assert re.search(says, wrong)


def test_nodes_are_counted():
    environment = {**STARTED["torchrun"](4)}
    assert problems(trainer(2, nodes=2), trains=True, environment=environment) == []
    (wrong,) = problems(trainer(None, nodes=3), trains=True, environment=environment)
    assert "need 3" in wrong


def test_devices_left_open_are_those_that_were_started(monkeypatch):
    for name, value in STARTED["torchrun"](2).items():
        monkeypatch.setenv(name, value)
    assert make_config("trainer=cpu", "trainer.devices=null").trainer.devices == 2
    wrong = config_problems(unresolved_config("trainer=cpu", "trainer.devices=null", "rl.prompts_per_step=3"))
    assert any("rl.prompts_per_step=3 does not divide among 2 processes" in line for line in wrong)


@pytest.mark.processes
def test_a_slurm_job_with_too_few_processes_is_refused_before_anything_is_loaded(tmp_path):
    done = run_command(
        "debug=smoke", "logger=none", "trainer=ddp", "trainer.accelerator=cpu", cwd=tmp_path, **STARTED["Slurm"](1)
    )
    assert_user_error(done, "Slurm started 1 process (SLURM_NTASKS)", "trainer.devices=2 x trainer.nodes=1 need 2")
    assert not list(tmp_path.rglob("*"))
