"""task=doctor: check the machine for a run of a config, measure one longest step, forecast time and memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Column, Table

from convrec_r1.base.errors import UserError
from convrec_r1.base.options import out_of_bounds
from convrec_r1.base.progress import console
from convrec_r1.config.checks import problems
from convrec_r1.config.parts import dataset, encoder_for
from convrec_r1.config.schema import Config, TaskConfig
from convrec_r1.data import SPLITS, Dataset
from convrec_r1.doctor import environment
from convrec_r1.doctor.findings import Finding, Level
from convrec_r1.doctor.model import build, held_to
from convrec_r1.doctor.plan import optimizers, plan_of
from convrec_r1.modules.config import Optimizer
from convrec_r1.modules.fit import device_for
from convrec_r1.modules.forecast import Plan, StepCost, duration, forecast, more_of, replacements, too_long
from convrec_r1.modules.measure import measure
from convrec_r1.modules.memory import keeps_reference_in_file, optimizer_bytes, reference_bytes, size
from convrec_r1.modules.step import optimizer_maker
from convrec_r1.policy import Policy
from convrec_r1.rl.config import Stage
from convrec_r1.rollout.engines import run_engine

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@dataclass(frozen=True)
class Forecast:
    """The measured step, seconds of the run by phase, and seconds that replacing groups takes at most."""

    plan: Plan
    cost: StepCost
    seconds: dict[str, float]
    more: float = 0.0


def doctor(cfg: Config) -> None:
    """Print what was found about a run of `cfg`. UserError with everything that cannot work."""
    findings, found = examine(cfg)
    show(findings, found)
    if wrong := [f for f in findings if f.level is Level.FAIL]:
        listed = "\n".join(f"  - {f.check}: {f.found.rstrip('.')}. {f.advice}".rstrip() for f in wrong)
        raise UserError(f"A run of this config cannot work:\n{listed}")


def examine(cfg: Config, *, budget: float = 60) -> tuple[list[Finding], Forecast | None]:
    """Return all findings, and the forecast where data and model are available. budget: seconds for measuring, about."""
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    run = replace(cfg, task=TaskConfig("train"))
    wrong = problems(run)
    findings = [Finding("config", line, Level.FAIL) for line in wrong] or [Finding("config", "no contradictions")]
    findings += environment.surroundings(run)
    if out_of_bounds(run) or any("data." in line or "model.path" in line for line in wrong):
        return findings, None
    seen, data = look_at_data(run)
    findings.append(seen)
    if data is None:
        return findings, None
    seen, policy = build(run, data, device_for(run.trainer))
    findings += seen
    if policy is None:
        return findings, None
    findings += held_to(run, data, policy)
    findings.append(environment.disk(Path(run.outputs), disk_bytes(run, policy)))
    try:
        found = look_ahead(run, policy, data, budget)
    except torch.OutOfMemoryError:
        advice = "model.max_prompt_length and model.max_completion_length lower, or a smaller model."
        return [*findings, Finding("memory", "one short sequence does not fit", Level.FAIL, advice)], None
    return [*findings, *memory(run, found)], found


def look_at_data(run: Config) -> tuple[Finding, Dataset | None]:
    """Load and check the dataset as a run does."""
    need = ["train", run.eval.split, *(["validation"] if run.eval.every else [])]
    try:
        data = dataset(run, need=need)
    except UserError as error:
        return Finding("data", str(error), Level.FAIL), None
    counts = ", ".join(f"{len(data[split]):,} {split}" for split in SPLITS)
    return Finding("data", f"{run.data.name}: {len(data.catalog):,} items; conversations: {counts}"), data


def look_ahead(run: Config, policy: Policy, data: Dataset, budget: float) -> Forecast:
    """Measure the longest step and forecast the run."""
    plan = plan_of(run, data, encoder_for(run, policy), packs=policy.packs)
    engine = run_engine(run.rollout, policy, max_length=run.model.max_length, cluster=run.cluster)
    on_gpu = policy.device.type == "cuda"
    bf16 = (run.trainer.precision or ("bf16" if on_gpu else "32")).startswith("bf16")
    choice = measurable(run, policy.device)
    try:
        cost = measure(
            policy, engine, plan, bf16=bf16, optimizer=choice, beside=beside(run, policy, choice), budget=budget / 2
        )
    finally:
        engine.close()
    return Forecast(plan, cost, forecast(cost, plan), replacements(cost, plan))


def measurable(run: Config, device: torch.device) -> Optimizer:
    """Return the optimizer of the run's last training, or AdamW where that is not available here."""
    try:
        optimizer_maker(optimizers(run)[0], device)
    except UserError:  # a finding about the config says so
        return Optimizer.adamw
    return optimizers(run)[0]


def beside(run: Config, policy: Policy, measured: Optimizer) -> int:
    """Return the bytes that the run holds in memory beside the weights, gradients and moments that are measured.

    RL holds its own moments and the reference, the warm start before it the moments of its optimizer.
    """
    trained = [p for p in policy.parameters() if p.requires_grad]
    last, *before = (optimizer_bytes(trained, choice) for choice in optimizers(run))
    reference = 0 if keeps_reference_in_file(policy.device) else reference_of(run, policy)
    return max([last + reference, *before]) - optimizer_bytes(trained, measured)


def reference_of(run: Config, policy: Policy) -> int:
    """Return the bytes of the run's frozen reference, in memory or in a file."""
    if run.algo.stage is not Stage.rl or not run.algo.beta:
        return 0
    name = run.model.reference_dtype
    return reference_bytes(policy, getattr(torch, name) if name else None)


def memory(run: Config, found: Forecast) -> list[Finding]:
    """Compare the peak of the longest step with the memory there is."""
    plan, cost, sharded = found.plan, found.cost, run.trainer.strategy == "fsdp"
    available = cost.available if cost.on_gpu else cost.available // run.trainer.world  # processes share the RAM
    phase = max(cost.peak, key=lambda name: cost.peak[name])
    text = ", ".join(f"{size(value)} for {name}" for name, value in cost.peak.items())
    text = f"{text}, of the longest sequences{' unsharded' if sharded else ''}; {size(available)} available"
    check = "GPU memory" if cost.on_gpu else "RAM"
    if cost.peak[phase] <= available:
        return [Finding(check, text)]
    if phase == "sampling":
        advice = f"rollout.batch_size={max(1, plan.engine_batch // 2)}, or rollout=vllm."
    else:
        rows = max(0, available - cost.held) * plan.micro_batch // max(1, cost.peak["training"] - cost.held)
        less = f"trainer.micro_tokens={plan.tokens(rows)}, or " if rows else "model.lora.enabled=true, "
        advice = f"{less}model.gradient_checkpointing=true, or a lower model.max_prompt_length."
    usual = (plan.mean_prompt + plan.mean_completion) / (plan.prompt + plan.completion)
    enough = cost.held + usual * (cost.peak[phase] - cost.held) <= available
    return [Finding(check, text, Level.WARN if sharded or enough else Level.FAIL, advice)]


def disk_bytes(run: Config, policy: Policy) -> int:
    """Return the most bytes that a run takes on the disk.

    Checkpoints hold trainer state and policy each, and three policies lie beside them. On a CPU so does the reference.
    """
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    trained = [p for p in policy.parameters() if p.requires_grad]
    moments = max(optimizer_bytes(trained, choice) for choice in optimizers(run))
    reference = reference_of(run, policy) if keeps_reference_in_file(policy.device) else 0
    return (run.trainer.keep_checkpoints + 1) * (2 * weights + moments) + 3 * weights + reference


def show(findings: Sequence[Finding], found: Forecast | None) -> None:
    """Print the findings as a table, and the forecast below it."""
    wide = Column("found", overflow="fold", ratio=3), "", Column("what to do", overflow="fold", ratio=2)
    table = Table("check", *wide)
    for f in findings:
        table.add_row(escape(f.check), escape(f.found), f"[{_STYLES[f.level]}]{f.level.value}[/]", escape(f.advice))
    console.print(table)
    if found is None:
        console.print("No forecast: it needs a valid config, data and a model.", highlight=False)
        return
    plan, cost, seconds, more = found.plan, found.cost, found.seconds, found.more
    step = (seconds["sampling"] + seconds["training"]) / max(1, plan.rl_steps)
    for line in (
        f"Measured: {cost.rows} of {plan.micro_batch} lists, {cost.tokens:,} of {plan.tokens(plan.micro_batch):,} tokens in a "
        f"pass, forward and backward in {cost.tokens * cost.learn:.2g} s; an optimizer update in {cost.update:.2g} s.",
        f"Forecast for prompts of {plan.mean_prompt} and completions of {plan.mean_completion} tokens, the means of the data:",
        *(f"  {name}: {duration(value)}" for name, value in seconds.items() if value),
        *([f"  an RL step: {duration(step)}"] if plan.rl_steps else []),
        too_long(seconds, more, on_gpu=cost.on_gpu)
        or f"The whole run: {duration(sum(seconds.values()))}. {more_of(more)}".rstrip(),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
