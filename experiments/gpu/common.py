"""What the GPU scripts share: a recorder with time limits, models of a given shape, prompts of a given length."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # where the package is not installed

SHAPES: dict[str, dict[str, Any]] = {
    # The sizes in the published config.json files.
    "qwen2.5-0.5b": {
        "family": "Qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        "family": "Llama", "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "dry": {  # for a dry run on a CPU
        "family": "Qwen2", "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip


class Recorder:
    """Runs steps one after another and appends each result to a file as soon as it is there."""

    def __init__(self, path: Path, *, seconds: float) -> None:
        """seconds: limit of the whole script. A step that could not end before it is left out, and the file says so."""
        self.path, self.end = path, time.monotonic() + seconds
        path.parent.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, limit: float, work: Callable[[float], dict[str, Any]]) -> None:
        """Run `work(limit)` and record what it returns, or the error that it raised. SIGALRM enforces the limit."""
        left = self.end - time.monotonic()
        if left < 0.5 * limit:
            return self.write(name, {"left_out": f"{left:.0f} s were left, the step may take {limit:.0f} s"})
        limit = min(limit, left)
        signal.signal(signal.SIGALRM, _too_late)
        signal.alarm(max(1, int(limit)))
        start = time.monotonic()
        try:
            result = work(limit)
        except Exception as error:  # the next steps are still worth their time
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        finally:
            signal.alarm(0)
        self.write(name, result | {"wall_s": round(time.monotonic() - start, 2)})

    def write(self, name: str, result: dict[str, Any]) -> None:
        line = json.dumps({"step": name} | result)
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def _too_late(*_: object) -> None:
    raise TimeoutError("the step passed its time limit")


def machine(_: float = 0) -> dict[str, Any]:
    """Return the card and the versions."""
    import pytorch_lightning
    import torch
    import transformers

    card: dict[str, Any] = {"card": "none"}
    if torch.cuda.is_available():
        card = {
            "card": torch.cuda.get_device_name(0),
            "gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        }
    return card | {
        "torch": torch.__version__, "transformers": transformers.__version__, "lightning": pytorch_lightning.__version__,
        "python": platform.python_version(), "cpus": os.cpu_count(),
    }  # fmt: skip


def shape_folder(shape: str, folder: Path) -> Path:
    """Write a Hugging Face folder with random weights of a shape, and a tokenizer trained on movieland. Return it."""
    import torch
    import transformers

    from convrec_r1.data.movieland.films import load_films
    from convrec_r1.policy.prompts import special_id
    from convrec_r1.policy.tiny import train_tokenizer

    if (folder / "config.json").exists():
        return folder
    tokenizer = train_tokenizer((f"{film.item}\n" for film in load_films()), 2048)
    options = {key: value for key, value in SHAPES[shape].items() if key != "family"}
    family = SHAPES[shape]["family"]
    config = getattr(transformers, f"{family}Config")(
        **options, max_position_embeddings=4096, bos_token_id=None, eos_token_id=special_id(tokenizer, "eos"),
        pad_token_id=special_id(tokenizer, "pad"),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        lm = getattr(transformers, f"{family}ForCausalLM")(config)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def long_conversations(folder: Path, count: int, turns: int) -> Path:
    """Write data=jsonl with conversations of `turns` turns, movieland's own one after another. Return the folder."""
    from convrec_r1.data.movieland.films import load_films

    folder.mkdir(parents=True, exist_ok=True)
    items = [(film.item.title, film.item.year) for film in load_films()]
    (folder / "catalog.json").write_text(json.dumps([{"title": title, "year": year} for title, year in items]))
    for split, size in (("train", count), ("validation", 4), ("test", 4)):
        rows = []
        for i in range(size):
            said = [
                {
                    "role": "user" if turn % 2 == 0 else "assistant",
                    "content": f"Turn {turn} of conversation {i} of {split}: after "
                    f"{items[(7 * i + turn) % len(items)][0]} I would like something quieter, with less noise and more talk.",
                }
                for turn in range(turns + 1 - turns % 2)
            ]
            truth = [list(items[(7 * i + k) % len(items)]) for k in range(3)]
            rows.append({"id": f"{split}{i}", "messages": said, "ground_truth": truth, "seen": []})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def job(overrides: list[str], outputs: Path, limit: float, *, name: str) -> dict[str, Any]:
    """Run `python -m convrec_r1` with memory statistics. Return exit status, seconds, memory and the run's metrics."""
    command, environment, statistics = _command(overrides, outputs, name)
    start = time.monotonic()
    with (outputs / f"{name}.log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit)
    result: dict[str, Any] = {"exit": done.returncode, "seconds": round(time.monotonic() - start, 1)}
    if statistics.exists():
        result |= json.loads(statistics.read_text())
    if done.returncode:
        result["log"] = (outputs / f"{name}.log").read_text()[-1500:]
    return result


def start_job(overrides: list[str], outputs: Path, *, name: str) -> subprocess.Popen:
    """Start what `job` runs, in a process group of its own, and return the process."""
    command, environment, _ = _command(overrides, outputs, name)
    log = (outputs / f"{name}.log").open("w")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def _command(overrides: list[str], outputs: Path, name: str) -> tuple[list[str], dict[str, str], Path]:
    outputs.mkdir(parents=True, exist_ok=True)
    statistics = outputs / f"{name}.memory.json"
    statistics.unlink(missing_ok=True)
    script = Path(__file__).with_name("job.py")
    command = [sys.executable, str(script), f"outputs={outputs}", f"study={name}", "logger=none", *overrides]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "STATISTICS": str(statistics)}
    return command, environment, statistics


def metrics(outputs: Path, name: str, split: str = "train") -> list[dict[str, Any]]:
    """Return the metrics of the one run of a study, a dict a step."""
    files = [f for f in (outputs / name).glob("*/metrics.jsonl") if "sft-" not in f.parent.name]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row for row in rows if row.get("split") == split]
