"""Look before the hours are spent: is everything there for a run of this config, does it fit, how long will it take."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import console
from convrec_r1.config.checks import problems, ranges
from convrec_r1.config.parts import corpus
from convrec_r1.config.schema import Config, TaskConfig
from convrec_r1.data import Dataset
from convrec_r1.data.load import load_data
from convrec_r1.doctor import environment, estimate
from convrec_r1.doctor.environment import Gpu
from convrec_r1.doctor.estimate import Lengths, Memory, Seconds
from convrec_r1.doctor.findings import Finding, Level, duration, failures, size
from convrec_r1.doctor.model import Model, find_model
from convrec_r1.doctor.speed import measure
from convrec_r1.modules.fit import device_for
from convrec_r1.policy import PromptEncoder
from convrec_r1.policy.config import ModelSource
from convrec_r1.rl.config import Stage
from convrec_r1.rollout.config import HFConfig, VLLMServerConfig

_SAMPLE = 256
"""Conversations whose tokens are counted."""
_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@dataclass(frozen=True)
class Estimate:
    """Of lists as long as the demonstrations (`usual`), and of the longest that the config allows (`longest`)."""

    lengths: tuple[Lengths, Lengths]
    memory: tuple[Memory, Memory]
    seconds: tuple[Seconds, Seconds]


def doctor(cfg: Config) -> None:
    """task=doctor: show what was found out about a run of `cfg`. UserError with all that cannot work."""
    findings, found = examine(cfg)
    show(findings, found)
    if wrong := failures(findings):
        listed = "\n".join(f"  - {f.check}: {f.found}{' ' + f.advice if f.advice else ''}" for f in wrong)
        raise UserError(f"A run of this config cannot work:\n{listed}")


def examine(cfg: Config) -> tuple[list[Finding], Estimate | None]:
    """All findings, and the estimate where the data and the model are there to make one."""
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    run = replace(cfg, task=TaskConfig("train"))
    gpus = environment.gpus()
    wrong = config_problems(run)
    findings = [Finding("config", line, Level.FAIL) for line in wrong] or [Finding("config", "no contradictions")]
    findings += environment.surroundings(run, gpus)
    if ranges(run):
        return findings, None
    if any("data." in line for line in wrong):
        findings.append(Finding("data", "not looked at: see config", Level.WARN))
        data = None
    else:
        seen, data = look_at_data(run)
        findings.append(seen)
    if data is None and run.model.source is ModelSource.tiny:  # whose vocabulary comes from the data
        return findings, None
    if any("model.path" in line for line in wrong):
        return findings, None
    seen, model = find_model(run, lambda: corpus(run, data) if data is not None else [])
    findings += seen
    if model is None:
        return findings, None
    found = make_estimate(run, model, data, gpus)
    findings += memory_findings(run, found.memory, gpus)
    findings += environment.disk_findings(Path(run.outputs), estimate.disk(model.size, run))
    return findings, found


def config_problems(run: Config) -> list[str]:
    """What `check` would refuse the run for, and Stage 1 where a teacher was chosen for it."""
    wrong = problems(run)
    if environment.asks_teacher(run):
        wrong += problems(replace(run, task=TaskConfig("distill")))
    return list(dict.fromkeys(wrong))


def look_at_data(run: Config) -> tuple[Finding, Dataset | None]:
    """The dataset, read and checked as a run does it."""
    need = ["train", run.eval.split, *(["validation"] if run.eval.every else [])]
    level = logging.getLogger("convrec_r1").level
    logging.getLogger("convrec_r1").setLevel(logging.ERROR)  # the finding says it
    try:
        data = load_data(run.data, run.n, need=need)
    except UserError as error:
        return Finding("data", str(error), Level.FAIL), None
    finally:
        logging.getLogger("convrec_r1").setLevel(level)
    counts = ", ".join(f"{len(data[split]):,} {split}" for split in ("train", "validation", "test"))
    text = f"{run.data.name}: {len(data.catalog):,} items; conversations: {counts}"
    needs = (run.warm_start == "sft" or run.algo.stage is Stage.sft) and run.data.demonstrations == "published"
    if needs and not any(c.demonstration for c in data["train"]):
        advice = "data.demonstrations=neighbours, data.demonstrations=distilled, or warm_start=null."
        return Finding("data", f"{text}; no demonstrations to imitate", Level.FAIL, advice), data
    return Finding("data", text), data


def usual_lengths(run: Config, model: Model, data: Dataset) -> Lengths:
    """Means over a sample of the training conversations; lists as their demonstrations, or of items of the catalog."""
    encoder = PromptEncoder(model.tokenizer, run.data.instruction, run.n, run.model.max_prompt_length)
    sample = data["train"][:: max(1, len(data["train"]) // _SAMPLE)]
    prompts = [len(encoder.prompt(c)) for c in sample]
    lists = [c.demonstration[: run.n] for c in sample if c.demonstration] or [list(data.catalog)[: run.n]]
    completions = [len(encoder.completion(items)) for items in lists]
    most = run.model.max_completion_length
    return Lengths(math.ceil(sum(prompts) / len(prompts)), min(most, math.ceil(sum(completions) / len(completions))))


def make_estimate(run: Config, model: Model, data: Dataset | None, gpus: Sequence[Gpu]) -> Estimate:
    longest = Lengths(run.model.max_prompt_length, run.model.max_completion_length)
    usual = usual_lengths(run, model, data) if data else longest
    on_gpu, device = environment.uses_gpu(run), device_for(run.trainer)
    engine = engines_beside(run, model.size, gpus)

    def memory(each: Lengths) -> estimate.Memory:
        return estimate.memory(model.size, run, each, on_gpu=on_gpu, engine=engine)

    _, compute = estimate.number_bytes(run)
    dtype = torch.bfloat16 if compute == 2 else torch.float32
    rows = estimate.micro_batch(run) * usual.both
    speed = measure(device, model.size, rows=rows, dtype=dtype)
    examples = sum(bool(c.demonstration) for c in data["train"]) if data else 0
    steps, test = run.sft.steps_for(examples), len(data[run.eval.split]) if data else 0

    def seconds(each: Lengths) -> estimate.Seconds:
        return estimate.seconds(model.size, run, speed, each, sft_steps=steps, test=test)

    return Estimate((usual, longest), (memory(usual), memory(longest)), (seconds(usual), seconds(longest)))


def engines_beside(run: Config, sizes: estimate.Size, gpus: Sequence[Gpu]) -> int:
    """Bytes of the vLLM engines that share a process's device (on CPUs: its part of those of the machine)."""
    on_gpu, rollout = environment.uses_gpu(run), run.rollout
    one = estimate.engine_memory(sizes, run, on_gpu=on_gpu, device_total=gpus[0].total if on_gpu else 0)
    if not isinstance(rollout, VLLMServerConfig):
        return one
    if not on_gpu:
        return one * rollout.start // max(1, run.trainer.devices)
    if len(gpus) - run.trainer.devices >= rollout.tensor_parallel_size:
        return 0  # the servers have GPUs of their own
    return one * math.ceil(rollout.start * rollout.tensor_parallel_size / len(gpus))


def memory_findings(run: Config, memory: tuple[Memory, Memory], gpus: Sequence[Gpu]) -> list[Finding]:
    """Whether usual and longest lists fit into the devices, and a GPU run's processes into the machine's memory."""
    free, total = environment.ram()
    processes = max(1, run.trainer.devices)
    base = environment.resident()
    if not environment.uses_gpu(run):
        need = [processes * (base + each.peak) for each in memory]
        return [_fits("RAM", need, free, total, run, memory)]
    used = gpus[: run.trainer.devices]
    tightest = min(used, key=lambda gpu: gpu.free)
    findings = [_fits("GPU memory", [each.peak for each in memory], tightest.free, tightest.total, run, memory)]
    # Every process builds the policy, and the reference policy beside it, before they go to its GPU.
    whole = memory[0].held["weights"] * estimate.shards(run) + memory[0].held.get("reference policy", 0)
    need = processes * (base + whole)
    text = f"{size(need)} to load, {size(free)} free of {size(total)}"
    advice = "Use fewer processes a machine (trainer.devices), or a smaller model."
    return [*findings, Finding("RAM", text, Level.FAIL, advice) if need > free else Finding("RAM", text)]


def _fits(name: str, need: Sequence[int], free: int, total: int, run: Config, memory: tuple[Memory, Memory]) -> Finding:
    text = f"{size(need[0])} needed, {size(need[1])} for the longest lists; {size(free)} free of {size(total)}"
    if need[1] <= free:
        return Finding(name, text)
    level, which = (Level.FAIL, memory[0]) if need[0] > free else (Level.WARN, memory[1])
    return Finding(name, text, level, _less(run, which, free))


def _less(run: Config, memory: Memory, free: int) -> str:
    """What to lower."""
    if sum(memory.held.values()) + memory.engine > free:
        return (
            "The weights alone are too many: model.lora.enabled=true, trainer=fsdp over more GPUs, or a smaller model."
        )
    if memory.worst in ("sampling", "evaluation"):
        batch = run.rollout.batch_size if isinstance(run.rollout, HFConfig) else 2
        return f"rollout.batch_size={max(1, batch // 2)}, or rollout=vllm."
    rows = estimate.micro_batch(run)
    less = f"trainer.micro_batch={rows // 2}" if rows > 1 else "model.max_prompt_length lower"
    return less + ("" if run.model.gradient_checkpointing else ", or model.gradient_checkpointing=true") + "."


def show(findings: Sequence[Finding], found: Estimate | None) -> None:
    table = Table(show_lines=False)
    table.add_column("check")
    table.add_column("found", overflow="fold", ratio=3)
    table.add_column("")
    table.add_column("what to do", overflow="fold", ratio=2)
    for f in findings:
        level = f"[{_STYLES[f.level]}]{f.level.value}[/]"
        table.add_row(escape(f.check), escape(f.found), level, escape(f.advice))
    console.print(table)
    for line in estimate_lines(found) if found else ["No estimate: it needs numbers, data and a model that are there."]:
        console.print(line, highlight=False, markup=False)


def estimate_lines(found: Estimate) -> list[str]:
    """The estimate in words, of usual and of the longest lists."""
    (usual, longest), (fits, most), (soon, late) = found.lengths, found.memory, found.seconds
    lines = [
        f"Estimate for prompts of {usual.prompt} and lists of {usual.completion} tokens, as in the data; in brackets for the "
        f"longest that are allowed, {longest.prompt} and {longest.completion}.",
        f"Memory of a process: {size(fits.peak)} ({size(most.peak)}) beside what Python takes.",
        f"  all the time: {_parts(fits.held)}",
    ]
    for phase, parts in fits.phases.items():
        if any(parts.values()):
            lines.append(f"  {phase}: {_parts(parts)} ({size(sum(most.phases[phase].values()))} in all)")
    if fits.engine:
        lines.append(f"  vLLM: {size(fits.engine)}")

    def both(name: str) -> str:
        return f"{duration(getattr(soon, name))} ({duration(getattr(late, name))})"

    if soon.sft:
        lines.append(f"An SFT step: {both('sft')}.")
    if soon.step:
        lines.append(f"An RL step: {both('step')}: sampling {both('rollout')}, training {both('train')}.")
    lines.append(f"The whole run, warm start and evaluations included: {both('total')}.")
    return lines


def _parts(parts) -> str:
    return ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)
