"""Time TRL's GRPOTrainer and ours on the same work: `make bench-peers`.

python experiments/bench_peers/run.py [--cases 250x8 500x16] [--fresh]

Writes experiments/bench_peers.json after each case, and bench_peers.md (table) and bench_peers.png (figure of ratios)
from it; the table stands in docs/speed.md too.
Cases that have a result are kept, unless other processes disturbed it; --fresh measures all again. Machine: Linux, and idle:
Beside other work TRL lost more time than ours, which would flatter ours.

For each case both peers are started, each in its own environment, and make steps in turn: TRL, ours, ours, TRL, ... So what
else the machine does falls on both. The same for both: weights, prompts, float32, threads, AdamW, lr, no KL, one update a
step, and the number of tokens (no list ends early, see workload.py). TRL: its fastest settings on a CPU (trl_grpo.py,
--trl-micro-batch). Ours: our defaults (ours.py), with the reward of ranked lists where TRL's is the length of a text.

Time: no turn begins later than --limit seconds after the start of a case, and a peer that is silent for as long is ended.
"""

import argparse
import json
import os
import platform
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from results import PEERS, disturbed, insert, name_of, parse_name, problem, ratio, table, write
from workload import prepare

from convrec_r1.base.files import read_json, write_json

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LENGTHS, GROUPS = (250, 500, 1000, 2000), (8, 16)
OUT = HERE.parent / "bench_peers.json"
PROBLEM = "problem"


class Silent(Exception):
    """A peer that ended, or did not answer in time."""


class Peer:
    """A process of one side, which makes a step when it is told to."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env, bufsize=0
            )
        self._lines = b""

    def step(self, within: float) -> dict[str, Any]:
        """Let it make a step. Return its measurements, and the cores that other processes kept busy meanwhile (others)."""
        assert self._process.stdin is not None
        start, busy, own = time.monotonic(), busy_seconds(), cpu_seconds(self._process.pid)
        try:
            self._process.stdin.write(b"step\n")
        except BrokenPipeError:
            raise self._silent("it ended") from None
        report = self.read("step", within)
        others = busy_seconds() - busy - (cpu_seconds(self._process.pid) - own)
        return report | {"others": max(0.0, others) / (time.monotonic() - start)}

    def read(self, event: str, within: float) -> dict[str, Any]:
        """Return its next report.

        Raises:
            Silent: none came within so many seconds, or it is about another event.
        """
        end = time.monotonic() + within
        out = self._process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in self._lines:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise self._silent(f"no {event} within {within:.0f} s")
                read = os.read(out.fileno(), 65_536)
                if not read:
                    raise self._silent("it ended")
                self._lines += read
        line, _, self._lines = self._lines.partition(b"\n")
        report = json.loads(line)
        if report.pop("event") != event:
            raise self._silent(f"it reported {line.decode()} instead of a {event}")
        return report

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _silent(self, why: str) -> Silent:
        said = self.log.read_text(errors="replace").strip().splitlines()
        return Silent(f"{self.name}: {why}; its last words: {said[-1] if said else 'none'}")


TICKS = os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Return the seconds that this machine's cores were busy so far, together."""
    user, nice, system, _, _, interrupts, soft, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, interrupts, soft, steal))) / TICKS


def cpu_seconds(pid: int) -> float:
    """Return the seconds that a process kept cores busy so far. 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def started(name: str, command: Sequence[str], env: dict[str, str], log: Path) -> Iterator[Peer]:
    """A peer, ended with the block."""
    peer = Peer(name, command, env, log)
    try:
        yield peer
    finally:
        peer.close()


def commands(
    given: argparse.Namespace, workload: Path, tokens: int, group: int
) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return command and environment of each peer."""
    work = {
        "workload": workload, "tokens": tokens, "group": group, "prompts": given.prompts, "new-tokens": given.new_tokens,
        "steps": given.warm_up + given.repeats, "seed": given.seed,
    }  # fmt: skip
    options = [f"--{key}={value}" for key, value in work.items()]
    micro = given.trl_micro_batch if given.prompts * group % max(1, given.trl_micro_batch) == 0 else 0
    return {
        "trl": (
            [str(given.peer_python), str(HERE / "trl_grpo.py"), *options, f"--micro-batch={micro}"],
            peer_environment(given.threads, ours=False),
        ),
        "ours": (
            [sys.executable, str(HERE / "ours.py"), *options, *given.ours],
            peer_environment(given.threads, ours=True),
        ),
    }


def peer_environment(threads: int, *, ours: bool) -> dict[str, str]:
    """Return the variables of a peer. Ours imports this checkout; TRL has packages of its own."""
    plain = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    same = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return plain | same | ({"PYTHONPATH": str(ROOT)} if ours else {})


def measure(given: argparse.Namespace, workload: Path, tokens: int, group: int, logs: Path) -> dict[str, Any]:
    """Return the steps of both peers for one case, or why there are none."""
    start = time.monotonic()
    case: dict[str, Any] = {"commit": commit()}
    with ExitStack() as stack:
        peers = {
            name: stack.enter_context(started(name, command, env, logs / f"{name}-{name_of(tokens, group)}.log"))
            for name, (command, env) in commands(given, workload, tokens, group).items()
        }
        try:
            for name in PEERS:
                case[name] = {**peers[name].read("ready", given.limit), "steps": []}
            for turn in range(given.warm_up + given.repeats):
                if turn and time.monotonic() - start > given.limit:
                    break
                steps = {name: peers[name].step(given.limit) for name in (PEERS if turn % 2 else PEERS[::-1])}
                for name, step in steps.items():
                    if turn >= given.warm_up:
                        case[name]["steps"].append(step)
        except Silent as silent:
            return {"commit": case["commit"], PROBLEM: str(silent)}
    wrong = problem(case, given.prompts * group * given.new_tokens)
    return {"commit": case["commit"], PROBLEM: wrong} if wrong else case


def commit() -> str:
    """Return the commit of the checkout, with + if files differ from it. Empty outside git."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True
    )
    return done.stdout.strip()


def machine(threads: int) -> str:
    """Return what all results of a table must come from: a kind of processor and a number of threads."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads} threads"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [name_of(tokens, group) for tokens in LENGTHS for group in GROUPS]
    parser.add_argument("--cases", nargs="+", default=every, metavar="TOKENSxG", help=f"default: {' '.join(every)}")
    parser.add_argument("--fresh", action="store_true", help="measure cases again that have a result")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step")
    parser.add_argument("--new-tokens", type=int, default=200, help="tokens of a list")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of each peer")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--limit", type=float, default=240, help="seconds of a case, see above")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trl-micro-batch", type=int, default=8, help="per_device_train_batch_size. 0: the whole step")
    parser.add_argument("--ours", nargs="+", default=[], metavar="KEY=VALUE", help="keys of our config")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer-python", type=Path, default=ROOT / ".venv-peers/bin/python")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    try:
        given.wanted = [parse_name(name) for name in given.cases]
    except ValueError as error:
        parser.error(str(error))
    if not given.peer_python.exists():
        parser.error(f"{given.peer_python} does not exist: `make bench-peers` installs TRL there")
    return given


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return the options that results must share to stand in one table."""
    shared = ("prompts", "new_tokens", "repeats", "warm_up", "threads", "trl_micro_batch", "ours", "seed")
    return {name: getattr(given, name) for name in shared}


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    result = earlier(given)
    cases = result["cases"]
    wanted = [(n, g) for n, g in given.wanted if given.fresh or not is_good(cases.get(name_of(n, g)))]
    with tempfile.TemporaryDirectory() as scratch:
        workload = Path(scratch)
        if wanted:
            count = given.prompts * (given.warm_up + given.repeats)
            result["workload"] = prepare(workload, sorted({tokens for tokens, _ in wanted}), count, given.seed)
        for tokens, group in wanted:
            name = name_of(tokens, group)
            case = cases[name] = measure(given, workload, tokens, group, workload)
            if PROBLEM in case:
                print(f"{name}: {case[PROBLEM]}", flush=True)
            else:
                result["peer"] = {key: case["trl"].pop(key) for key in ("trl", "transformers")}
                print(f"{name}: TRL / ours {ratio(case)}", flush=True)
            write_json(given.out, result)
    write(result, given.out)
    if given.out == OUT:
        image = f"![TRL's seconds over ours, by prompt length](../experiments/{OUT.stem}.png)"
        insert(f"{table(result)}\n{image}", ROOT / "docs" / "speed.md")
    print(given.out.with_suffix(".md").read_text(encoding="utf-8"))
    return int(any(PROBLEM in case for case in cases.values()))


def is_good(case: dict[str, Any] | None) -> bool:
    """Return whether a case has a result that nothing disturbed."""
    return case is not None and PROBLEM not in case and not disturbed(case)


def earlier(given: argparse.Namespace) -> dict[str, Any]:
    """Return the results that are there already, or none.

    They must have the same settings and machine, unless --fresh drops them.
    """
    result = {"settings": settings(given), "machine": machine(given.threads), "workload": {}, "peer": {}, "cases": {}}
    if given.out.exists():
        before = read_json(given.out)
        if all(before[key] == result[key] for key in ("settings", "machine")):
            return before
        if not given.fresh:
            sys.exit(f"{given.out} was measured with other settings or on another machine. Add --fresh, or --out FILE.")
    return result


if __name__ == "__main__":
    sys.exit(main())
