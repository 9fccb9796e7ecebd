"""Cut off or kill a host of three during training, and compare the weights at the end with those of an undisturbed run.

    python experiments/hosts_test.py                          # 10 trials, 20 min; writes experiments/hosts_test.json
    python experiments/hosts_test.py --seeds 2 --first 5      # trials 5 and 6; writes nothing

Needs root on Linux with iproute2: the hosts are network namespaces of this machine, each with an address and a Ray node
(hosts.py). They share one folder. The run is the whole job (SFT, then RL, then evaluation) on the first host. Trials with
even numbers train in the command's process, with two rollout workers on the other hosts; those with odd numbers train in two
processes of Ray Train, beside two rollout workers, anywhere.

In each trial one host is struck once, up to a second after a step of SFT or RL that is drawn:
    killed      all its processes at once, with -9; its Ray node is started again after some seconds, or never
    cut off     its cable is pulled, and plugged in again after some seconds, or never
If the first host was killed, the same command is started again. Compared: the policy's weights by SHA-256, every list.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from crash_test import where
from hosts import HEALTH, PORT, Host, Network, missing
from test_resume import outcome

from convrec_r1.base.files import read_jsonl, write_json

SFT, RL = 8, 24
"""Steps."""
RUN = ("debug=smoke", "logger=none", "hydra.run.dir=run", f"sft.steps={SFT}", f"rl.steps={RL}", "eval.every=8",
       "eval.baselines=[]", "guard.action=none", "trainer.checkpoint_every=2", "trainer.accelerator=cpu",
       "rollout=hf", "rollout.workers=2", "rollout.overlap=1", "rollout.timeout=120",
       "cluster=ray", f"cluster.address=10.71.0.1:{PORT}", "cluster.wait=120")  # fmt: skip
LAYOUTS = {
    "rollout workers": ([0, 1, 1], ()),
    "Ray Train": ([1, 2, 2], ("trainer=ddp", "trainer.devices=1", "trainer.nodes=2")),
}
"""Name -> CPUs of each host's Ray node, and more options. With one host gone there is room for training and a worker."""
OURS = ("ray::RolloutWorker", "ray::RayTrainWorker", "ray::Desk", "ray::TrainController", "-m convrec_r1")
FAULTS = [(False, None), (True, 10.0), (False, 15.0), (True, None), (False, 2.0)]
"""Whether the host is killed, or cut off; seconds until it is back, shorter and longer than Ray takes to notice, or never."""
LIMIT = 1200.0
"""Seconds that a run may take, undisturbed one minute on an idle machine."""


@dataclass(frozen=True)
class Strike:
    """What happens to which host."""

    host: int
    kill: bool
    """False: it is cut off."""
    back: float | None
    step: int
    """Of SFT and RL together."""
    delay: float
    """Seconds after it."""

    def __str__(self) -> str:
        done = "killed" if self.kill else "cut off"
        return f"host {self.host} {done}, " + ("for good" if self.back is None else f"back after {self.back:.0f} s")

    @classmethod
    def draw(cls, seed: int) -> "Strike":
        rng = random.Random(seed)
        kill, back = FAULTS[seed // 2 % len(FAULTS)]
        # The first host has to come back: the command is there.
        return cls(
            rng.choice([2, 3] if back is None else [1, 2, 3]), kill, back, rng.randrange(1, SFT + RL), rng.random()
        )


class Run:
    """The command on the first host, in a folder that all hosts see."""

    def __init__(self, network: Network, overrides: tuple[str, ...]) -> None:
        self.host, self.overrides = network.hosts[0], overrides
        self.folder = network.folder / "shared"
        self.said = self.folder / "said.log"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.began = time.monotonic()
        self.process = self.host.start(
            sys.executable, "-m", "convrec_r1", *RUN, *self.overrides, cwd=self.folder, log=self.said
        )

    def step(self) -> int:
        """Return the last step of SFT and RL together that is recorded. SFT does not record every step."""
        rl = self._recorded(self.folder / "run" / "metrics.jsonl")
        sft = (self._recorded(file) for file in self.folder.glob("outputs/warm_starts/*/metrics.jsonl"))
        return SFT + rl if rl else max(sft, default=0)

    @staticmethod
    def _recorded(file: Path) -> int:
        return max((row["step"] for row in read_jsonl(file) if row["split"] == "train"), default=0)

    def until(self, step: int) -> None:
        """Wait until a step is made."""
        while self.step() < step:
            if self.process.poll() is not None or time.monotonic() > self.began + LIMIT:
                raise SystemExit(f"A run failed:\n{self.said.read_text()[-3000:]}")
            time.sleep(0.02)

    def end(self) -> int | None:
        """Wait for the end. Return the exit status, None if it takes too long."""
        try:
            return self.process.wait(max(1.0, self.began + LIMIT - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None


def start_ray(network: Network) -> None:
    """Start the Ray node of each host. The run waits for those that have yet to join."""
    for host in network.hosts:
        host.start_ray()
        time.sleep(0.5)
    while not all(starts(host) for host in network.hosts):
        time.sleep(0.2)


def starts(host: Host) -> int:
    """Return how often the host's Ray node has started."""
    return host.log.read_text().count("Ray runtime started") if host.log.exists() else 0


def undisturbed(layout: str) -> tuple[float, dict]:
    """Return the seconds that a run takes, and the outcome."""
    cpus, overrides = LAYOUTS[layout]
    with Network(cpus) as network:
        start_ray(network)
        run = Run(network, overrides)
        run.start()
        if run.end() != 0:
            raise SystemExit(f"The undisturbed run failed:\n{run.said.read_text()[-5000:]}")
        return time.monotonic() - run.began, outcome(run.folder / "run")


def trial(seed: int, layout: str, wanted: dict, keep: Path | None) -> dict:
    """Strike one run, and return what came of it."""
    strike = Strike.draw(seed)
    cpus, overrides = LAYOUTS[layout]
    with Network(cpus) as network:
        start_ray(network)
        run, host = Run(network, overrides), network.hosts[strike.host - 1]
        run.start()
        began = run.began
        run.until(strike.step)
        time.sleep(strike.delay)
        struck = where(run.folder)
        host.kill() if strike.kill else host.link(up=False)
        if strike.back is not None:
            time.sleep(strike.back)
            before = starts(host)
            host.start_ray() if strike.kill else host.link(up=True)
            while strike.kill and strike.host == 1 and starts(host) == before:
                time.sleep(0.2)  # who starts the command again does so when the head is there
        if run.process.poll() is not None and strike.kill and strike.host == 1:
            run.start()
        status = run.end()
        took = time.monotonic() - began
        found = outcome(run.folder / "run") if status == 0 else {"files": None, "metrics": None}
        rows = [row["values"] for row in read_jsonl(run.folder / "run" / "metrics.jsonl")]
        reached = [h for h in network.hosts if h is not host or strike.back is not None]
        result = {
            "seed": seed, "layout": layout, "strike": str(strike), "while": struck, "status": status,
            "seconds": round(took, 1), "equal": status == 0 and found["files"] == wanted["files"],
            "faults": int(max((row.get("rollout/faults", 0) for row in rows), default=0)),
            "restarts of training": run.said.read_text().count("They restart ("), "left": left(reached),
        }  # fmt: skip
        if keep is not None:
            shutil.copytree(network.folder, keep / str(seed), symlinks=True, ignore=shutil.ignore_patterns("sockets"))
    return result


def left(hosts: list[Host], within: float = 30.0) -> list[str]:
    """Return processes of the run that outlive it."""
    end, found = time.monotonic() + within, ["?"]
    while found and time.monotonic() < end:
        time.sleep(0.5)
        found = [
            f"{host.name}: {line[:80]}"
            for host in hosts
            for line in host.names().values()
            if any(o in line for o in OURS)
        ]
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=10, help="trials")
    arguments.add_argument("--first", type=int, default=0, help="seed of the first trial")
    arguments.add_argument("--keep", type=Path, help="folder for the logs of each trial")
    given = arguments.parse_args()
    if (why := missing()) is not None:
        sys.exit(f"hosts_test.py cannot make hosts here: {why}.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("SIGTERM"))  # the hosts are removed
    seeds = range(given.first, given.first + given.seeds)
    layouts = {seed: list(LAYOUTS)[seed % 2] for seed in seeds}
    alone = {}
    for layout in sorted(set(layouts.values())):
        alone[layout] = undisturbed(layout)
        print(f"undisturbed, {layout}: {alone[layout][0]:.1f} s", flush=True)
    trials, equal = [], 0
    for seed, layout in layouts.items():
        trials.append(found := trial(seed, layout, alone[layout][1], given.keep))
        print(found, flush=True)
        equal = sum(found["equal"] and not found["left"] for found in trials)
        if given.first == 0 and given.seeds >= 10:
            record = {
                "command": RUN,
                "layouts": {name: {"cpus": cpus, "options": options} for name, (cpus, options) in LAYOUTS.items()},
                "health checks": HEALTH,
                "undisturbed seconds": {layout: round(seconds, 1) for layout, (seconds, _) in alone.items()},
                "equal": equal,
                "trials": trials,
            }
            write_json(Path(__file__).with_suffix(".json"), record)
    print(f"{equal} of {len(trials)} equal")
    sys.exit(equal != len(trials))


if __name__ == "__main__":
    main()
