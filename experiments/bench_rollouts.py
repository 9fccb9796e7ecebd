"""How fast rollouts are, and what a step spends beside them: `make bench`. Writes experiments/bench_rollouts.json.

python experiments/bench_rollouts.py                                        # the tiny model, on whatever is here
python experiments/bench_rollouts.py --shape qwen2.5-0.5b --completions 48 384 --sleep    # on a GPU

Everything is measured in one run and reported as ratios where two things are compared: they take turns, so that what
else the machine does falls on both. Weights are random: completions run to their limit, as long as a list's.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Before torch starts its threads, as the command does.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as convrec_r1/cli.py sets it
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import Qwen2Config, Qwen2ForCausalLM

import convrec_r1.__main__  # noqa: F401  registers the schema
from convrec_r1.base.files import write_json
from convrec_r1.config.files import conf_folder
from convrec_r1.config.parts import base_policy, encoder_for, judge, matching, objective, rl_settings
from convrec_r1.config.resolve import resolve
from convrec_r1.config.schema import Config
from convrec_r1.data.load import load_data
from convrec_r1.modules.fit import fit
from convrec_r1.modules.measure import finish, wall_time
from convrec_r1.modules.rl import RLModule
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import Policy
from convrec_r1.rollout.base import Sampling, make_engine, prompt_seed
from convrec_r1.rollout.config import vllm_version
from convrec_r1.rollout.vllm.options import sampling_arguments
from convrec_r1.run.tracker import Tracker

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QWEN_05B = {
    "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip


def config(*overrides: str) -> Config:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("config", overrides=list(overrides))
    OmegaConf.resolve(composed)
    cfg = OmegaConf.to_object(composed)
    resolve(cfg)
    return cfg


def make_policy(cfg: Config, data: Any, shape: str) -> Policy:
    policy = base_policy(cfg, data)
    if shape == "tiny":
        return policy
    eos, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    torch.manual_seed(0)
    lm = Qwen2ForCausalLM(Qwen2Config(**QWEN_05B, eos_token_id=eos, pad_token_id=pad, bos_token_id=None))
    return Policy(lm, policy.tokenizer)


def generation(cfg: Config, policy: Policy, prompts: list[list[int]], repeats: int) -> dict[str, float]:
    """Tokens a second of our worker, of bare vLLM on the same requests, and of Hugging Face generate; syncs."""
    from vllm import SamplingParams

    sampling = Sampling(n=cfg.algo.group_size, max_tokens=cfg.model.max_completion_length)
    seeds = [prompt_seed(0, 0, i) for i in range(len(prompts))]
    ours = make_engine(cfg.rollout, policy, max_length=cfg.model.max_length)
    start = wall_time(lambda: ours.sync(policy), DEVICE)
    hf = make_engine(config("rollout=hf").rollout, policy, max_length=cfg.model.max_length)

    def worker() -> int:
        return sum(len(c.ids) for group in ours.generate(prompts, seeds, sampling) for c in group)

    def bare() -> int:
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        parameters = [
            SamplingParams(**sampling_arguments(sampling, seed, policy.eos_ids), flat_logprobs=True) for seed in seeds
        ]
        outputs = ours._llm.generate(requests, parameters, use_tqdm=False)
        return sum(len(choice.token_ids) for output in outputs for choice in output.outputs)

    def plain() -> int:
        return sum(len(c.ids) for group in hf.generate(prompts, seeds, sampling) for c in group)

    speeds: dict[str, list[float]] = {"worker": [], "bare": [], "hf": []}
    for turn in range(repeats + 1):
        for name, work in (("worker", worker), ("bare", bare), ("hf", plain)):
            if name == "hf" and turn > 2:
                continue
            ours.sync(policy)  # awake, and with an empty prefix cache
            counted: list[int] = []
            took = wall_time(lambda work=work, counted=counted: counted.append(work()), DEVICE)
            if turn:  # the first turn warms up
                speeds[name].append(counted[0] / took)
    syncs = [wall_time(lambda: ours.sync(policy), DEVICE) for _ in range(repeats)]
    ours.check.every = 0
    unchecked = [wall_time(lambda: ours.sync(policy), DEVICE) for _ in range(repeats)]
    ours.close()
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "worker / bare vLLM, tokens a second": statistics.median(
            a / b for a, b in zip(speeds["worker"], speeds["bare"], strict=True)
        ),
        "vllm / hf, tokens a second": speed["worker"] / speed["hf"],
        "tokens a second, vllm": speed["worker"],
        "tokens a second, hf": speed["hf"],
        "start, seconds": start,
        "sync, ms": 1e3 * statistics.median(syncs),
        "sync without checksum, ms": 1e3 * statistics.median(unchecked),
    }


class Parts:
    """Seconds spent in some of a module's methods, over all steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: object, method: str, part: str) -> None:
        inner = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            result: list[Any] = []
            took = wall_time(lambda: result.append(inner(*arguments, **options)), DEVICE)
            self.seconds[part] = self.seconds.get(part, 0.0) + took
            return result[0]

        object.__setattr__(owner, method, timed)


def step(cfg: Config, policy: Policy, data: Any, steps: int) -> dict[str, float]:
    """Shares of a whole step, from one step's beginning to the next's."""
    engine = make_engine(cfg.rollout, policy, max_length=cfg.model.max_length)
    loader = StepLoader(data["train"], cfg.rl.prompts_per_step, steps + 1, cfg.seed)
    module = TimedRL(
        policy, engine, encoder_for(cfg, policy), judge(cfg, data.catalog), objective(cfg), rl_settings(cfg), Tracker(), loader
    )  # fmt: skip
    parts, began = Parts(), []

    def train(slots: Any, index: int, inner=module.training_step) -> None:
        if module.step == 1:  # the first step warms up
            for owner, method, part in (
                (engine, "generate", "generation"), (module, "update", "update"), (module, "logps", "update"),
                (module, "_clip", "clip"), (engine, "sync", "sync"), (module, "judge", "judging"),
            ):  # fmt: skip
                parts.watch(owner, method, part)
            optimizer = module.optimizers().optimizer
            optimizer.register_step_pre_hook(lambda *_: began.append(time.perf_counter()))
            optimizer.register_step_post_hook(lambda *_: began.append(time.perf_counter()))
            finish(DEVICE)
            train.start = time.perf_counter()
        inner(slots, index)

    module.training_step = train
    with tempfile.TemporaryDirectory() as folder:
        cfg.trainer.checkpoint_every = steps + 2
        fit(module, loader, cfg.trainer, Path(folder), description=type(engine).__name__)
    whole = module.ended - train.start
    engine.close()
    optimizing = sum(b - a for a, b in zip(began[::2], began[1::2], strict=True))
    seconds = parts.seconds
    learning = seconds["update"] - seconds["clip"] - optimizing
    shares = {
        "generation": seconds["generation"], "forward and backward": learning, "sync": seconds["sync"],
        "optimizer": optimizing + seconds["clip"], "judging": seconds["judging"],
    }  # fmt: skip
    result = {f"{name}, share": value / whole for name, value in shares.items()}
    result["neither generation, forward nor backward, share"] = 1 - (seconds["generation"] + learning) / whole
    return result | {"seconds": whole / steps}


class TimedRL(RLModule):
    """Notes when its last step ended, before the checkpoint."""

    ended = 0.0

    def report(self, *arguments: Any) -> None:
        super().report(*arguments)
        finish(DEVICE)
        self.ended = time.perf_counter()


def machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, vLLM {vllm_version()}{gpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "qwen2.5-0.5b"), default="tiny")
    parser.add_argument("--completions", type=int, nargs="+", default=[128], help="a step, 8 a prompt")
    parser.add_argument("--sleep", action="store_true", help="GPU: also with the engine asleep between rollouts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "bench_rollouts.json")
    arguments = parser.parse_args()
    if vllm_version() is None:
        sys.exit("This bench needs vLLM: make setup-vllm.")
    gpu = torch.cuda.is_available()
    result: dict[str, Any] = {"machine": machine(), "model": arguments.shape}
    for completions in arguments.completions:
        for sleep in (False, True) if arguments.sleep and gpu else (False,):
            base = [
                "logger=none", f"rl.prompts_per_step={completions // 8}", "data.train_size=500",
                f"trainer={'gpu' if gpu else 'cpu'}",
            ]  # fmt: skip
            choices = {
                "vllm": ["rollout=vllm", f"rollout.sleep={sleep}", f"rollout.max_num_seqs={min(completions, 384)}"],
                "hf": ["rollout=hf"],
            }
            cfg = config(*choices["vllm"], *base)
            data = load_data(cfg.data, cfg.n, matching(cfg), need=["train"])
            policy = make_policy(cfg, data, arguments.shape).to("cuda" if gpu else "cpu")
            encoder = encoder_for(cfg, policy)
            prompts = [encoder.prompt(c) for c in data["train"][: completions // 8]]
            name = f"{completions} completions" + (", sleep" if sleep else "")
            result[name] = generation(cfg, policy, prompts, arguments.repeats)
            for engine, chosen in choices.items():
                cfg = config(*chosen, *base)
                result[f"{name}, step with {engine}"] = step(cfg, policy, data, arguments.steps)
    write_json(arguments.out, result)
    for name, values in result.items():
        print(name if isinstance(values, dict) else f"{name}: {values}")
        for key, value in values.items() if isinstance(values, dict) else ():
            print(f"  {key:<50} {value:.3f}")


if __name__ == "__main__":
    main()
