"""Faults put in by hand, one at a time: which of them do the tests notice?

    python experiments/mutants.py                # all, a table on the terminal and experiments/mutants.json
    python experiments/mutants.py sign lock      # those named so
    python experiments/mutants.py --all-tests    # every test runs for a fault that its own tests do not notice

Each fault is one replacement in a copy of the checkout. The tests that should notice it run first, until one fails; with
--all-tests the rest of `make test` runs for a fault that none of them noticed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Files of tests/ that should notice it."""


FAULTS = (
    Fault("sign", "advantages have the wrong sign", "rl/advantages.py",
          "centred = groups - groups.mean(1, keepdim=True)", "centred = groups.mean(1, keepdim=True) - groups",
          ("advantages",)),
    Fault("rank", "each rank starts one token early", "rl/segments.py",
          "closes.long().cumsum(-1) - closes.long()", "closes.long().cumsum(-1)", ("segments",)),
    Fault("overflow", "tokens past rank N count as rank N", "rl/objective.py",
          "return ranks.clamp(min=0, max=n)", "return ranks.clamp(min=0, max=n - 1)", ("objective",)),
    Fault("clip", "the surrogate takes the larger of clipped and unclipped", "rl/objective.py",
          "surrogate = torch.minimum(r * advantages, clipped)", "surrogate = torch.maximum(r * advantages, clipped)",
          ("objective",)),
    Fault("used up", "one ground truth may be hit twice", "reward/rank.py", "years.remove(nearest)", "pass",
          ("reward",)),
    Fault("seen", "what the user has seen is rewarded", "reward/rank.py",
          "if title in seen_titles or not years:", "if not years:", ("reward",)),
    Fault("shaping", "the EOS of too long a list earns what a complete list's does", "rl/advantages.py",
          "(lengths == n)[:, None]", "(lengths >= n)[:, None]", ("advantages", "numerics")),
    Fault("denominator", "a micro-batch divides by its own tokens, not by the step's", "modules/rl.py",
          "normalizer=normalizer, max_length", "normalizer=None, max_length", ("modules",)),
    Fault("devices", "gradients are averaged over processes instead of summed", "modules/step.py",
          "checks.see(LOSS, loss()) * self.trainer.world_size", "checks.see(LOSS, loss())", ("ddp",)),
    Fault("dropout seed", "a step's random numbers do not follow from seed and step", "modules/step.py",
          "seed_torch(int(state[0]))", "pass", ("modules",)),
    Fault("data order", "the place in the data is not saved", "modules/step.py",
          'return {"start": self.start, "drawn": self.drawn, "claimed": list(self.claimed)}',
          'return {"start": 0, "drawn": 0, "claimed": []}', ("modules", "resume")),
    Fault("replaced prompts", "prompts that took the place of others are sampled again", "modules/step.py",
          "        self.drawn += len(slots)\n", "        self.drawn += len(slots) if len(slots) == self.per_step else 0\n",
          ("groups",)),
    Fault("partition", "minibatches that do not divide a group follow the process's own numbering", "modules/minibatches.py",
          "hand = torch.tensor(list(slots)) % hands", "hand = torch.arange(len(slots)) * hands // len(slots)",
          ("minibatches",)),
    Fault("own gradient", "a token's ratio has its unit's gradient besides its own", "rl/objective.py",
          "unit_log_ratio(difference.detach(), mask", "unit_log_ratio(difference, mask", ("objective",)),
    Fault("sampled ahead", "lists that were sampled ahead are not restored", "rollout/pipeline.py",
          '        for saved in state.get("steps", []):\n', "        for saved in []:\n", ("pipeline",)),
    Fault("sync", "the engine keeps the weights it was started with", "modules/rl.py",
          "        self.engine.sync(self.policy)\n        self.steps_done += 1\n", "        self.steps_done += 1\n",
          ("vllm", "pipeline")),
    Fault("weights checked", "sums of the weights' bits are not compared", "rollout/checksums.py",
          "if _total(sent) == _total(found):", "if True:", ("weights",)),
    Fault("checksum", "a checkpoint's checksums are not compared", "run/checkpoints.py",
          "if digest_of(file) != digest:", "if False:", ("resume",)),
    Fault("lock", "two commands may write into one folder", "run/folder.py",
          "stack.enter_context(locked(self.path / lock, timeout))", "pass", ("resume", "places")),
    Fault("other data", "a run of other data is taken for the same run", "tasks/inputs.py",
          'if before["data"].get(name, value) != value', "if False", ("inputs",)),
    Fault("other code", "an interrupted run resumes with other code", "tasks/inputs.py",
          "        if not cfg.other_code:\n", "        if False:\n", ("inputs",)),
    Fault("weights in the key", "a warm start is found whatever its model's weights are", "tasks/warm_start.py",
          '"weights": started_from(cfg.model),', '"weights": "",', ("inputs",)),
    Fault("taken over", "the command's own keys lose against the run's", "config/inherit.py",
          "any(within(key, k) or within(k, key) for k in keys)", "False", ("inherit",)),
    Fault("planted in a run", "what a run's folder names is imported", "config/inherit.py",
          "or path in _built_in(section)", "or path", ("inherit",)),
    Fault("half a history", "a resumed run's W&B record begins where it resumed", "run/tracker.py",
          "        if earlier:\n", "        if False:\n", ("wandb",)),
    Fault("nan", "an update is made whatever is in it", "modules/step.py",
          "if self._anywhere(not (checks.all_finite() and math.isfinite(norm))):", "if False:", ("numerics",)),
    Fault("secret", "a secret of the environment may stand in a config", "config/checks.py",
          "return [*wrong, *_secrets(cfg)]", "return wrong", ("hostile",)),
    Fault("half a file", "files are written in place", "base/files.py", "    scratch = Path(name)\n",
          "    Path(name).unlink()\n    scratch = path\n", ("run",)),
    Fault("plug-in source", "a changed plug-in is taken for the same run", "run/identity.py",
          "return {SOURCES: digests, **values} if digests else dict(values)", "return dict(values)", ("plugins",)),
    Fault("planted code", "to find the source of a plug-in is to import it", "base/plugins.py",
          "            folders = list(spec.submodule_search_locations)\n",
          "            __import__(name)\n            folders = list(spec.submodule_search_locations)\n", ("plugins",)),
    Fault("plug-in option", "an unknown option of a plug-in is dropped", "base/plugins.py",
          "        if unknown:\n", "        if False:\n", ("plugins",)),
    Fault("same item", "a normalised match ignores accents no more", "matching.py",
          "        return _normalised(title)\n", "        return fold(title)\n", ("matching",)),
    Fault("rewind", "metrics after the checkpoint are not dropped", "run/tracker.py",
          'return not final and (row["split"] in keep or row["step"] <= step)', "return True", ("run", "resume")),
    Fault("sweep status", "a cell that failed counts as complete", "cli.py", "    cell.end(status)\n", "    cell.end(OK)\n",
          ("sweep",)),
    Fault("pickle", "a catalog's pickle may name anything", "data/unpickle.py",
          'if module in ("builtins", "__builtin__") and name in _ADMITTED:\n            return _ADMITTED[name]',
          "return super().find_class(module, name)", ("hostile", "catalog")),
    Fault("html", "titles go into the report as they are", "studies/compare.py", "autoescape=True", "autoescape=False",
          ("compare", "hostile")),
    Fault("signal", "SIGTERM does not end training", "modules/callbacks.py",
          "            self.number = number\n            trainer.should_stop = True\n", "            self.number = number\n",
          ("resume",)),
    Fault("cache", "an answer is kept for another teacher's question", "distill/teachers/cache.py",
          "asked = [identity, [list", "asked = [[list", ("teachers", "distill")),
    Fault("clusters", "each conversation counts as independent", "evaluate/statistics.py",
          "    sums, sizes = _cluster_totals(first - second, clusters)\n",
          "    sums, sizes = _cluster_totals(first - second, range(len(first)))\n", ("statistics",)),
)  # fmt: skip


def apply(fault: Fault, package: Path) -> None:
    file = package / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        sys.exit(f"{fault.name}: {file} must hold this once, and does {text.count(fault.old)} times:\n{fault.old}")
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def noticed(checkout: Path, tests: list[str]) -> str | None:
    """The first test that fails, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    if not tests:
        command += ["-n", "auto", "--dist", "loadgroup", "--no-loadscope-reorder"]
    # Ahead of the checkout that this environment has installed.
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    failed = [
        line.split(" ", 1)[1].split(" - ")[0]
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    if done.returncode and not failed:
        sys.exit(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return failed[0] if failed else None


def try_fault(fault: Fault, *, all_tests: bool) -> dict:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        leave_out = shutil.ignore_patterns(".venv", ".git", "outputs", "dist", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, checkout, ignore=leave_out)
        apply(fault, checkout / "convrec_r1")
        by = None
        for name in fault.tests:
            by = by or noticed(checkout, [f"tests/test_{name}.py"])
        if by is None and all_tests:
            by = noticed(checkout, [])
    return {**asdict(fault), "noticed_by": by, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="faults to try; none: all")
    parser.add_argument("--all-tests", action="store_true")
    given = parser.parse_args()
    chosen = [fault for fault in FAULTS if not given.names or fault.name in given.names]
    rows = []
    for fault in chosen:
        row = try_fault(fault, all_tests=given.all_tests)
        rows.append(row)
        print(f"{fault.name:16} {row['seconds']:6.1f} s  {row['noticed_by'] or 'NOT NOTICED'}", flush=True)
    if not given.names:
        (ROOT / "experiments" / "mutants.json").write_text(json.dumps(rows, indent=2) + "\n")
    missed = [row["name"] for row in rows if row["noticed_by"] is None]
    print(f"{len(rows) - len(missed)} of {len(rows)} noticed" + (f"; missed: {', '.join(missed)}" if missed else ""))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
