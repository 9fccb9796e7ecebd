"""Compute a batch again that a run could make no update of, and say where the first thing is that is not finite."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convrec_r1.base.progress import console
from convrec_r1.config.schema import Config
from convrec_r1.modules.finite import Saved, bad_names, read_fault
from convrec_r1.modules.fit import device_for
from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.policy.config import ModelConfig
from convrec_r1.rl import importance_weights, surrogate_loss

INPUTS = {
    "sampled_logps": "the sampler's log-probs",
    "advantages": "the advantages",
    "ref_logps": "the reference's log-probs",
    "old_logps": "the old log-probs",
}
"""What a batch brings along, in the order in which a step makes it."""


def replay(cfg: Config) -> list[str]:
    """task=replay: tell what becomes of the batch in `cfg.checkpoint` here. Returns the lines that were shown.

    UserError where that is no saved batch.
    """
    assert cfg.checkpoint is not None  # config/checks.py
    saved = read_fault(Path(cfg.checkpoint).expanduser())
    facts = saved.facts
    model = ModelConfig(
        name="replay",
        path=str(saved.folder / "policy"),
        dtype=facts["dtype"],
        attention=cfg.model.attention,
        trust_remote_code=cfg.model.trust_remote_code,
    )
    policy = saved.policy(model).to(device_for(cfg.trainer)).train()
    lines = [
        f"Step {facts['step']}, update {facts['update']}; what the run found: {', '.join(facts['what'])}",
        f"Computed again on {policy.device.type}, {facts['precision']}, from {saved.folder}:",
    ]
    found = recompute(saved, policy)
    lines += [f"  {line}" for line in found] or [
        "  finite here: weights, inputs, log-probs, loss and gradients. The fault was in what is not saved (hardware, a "
        "kernel, the optimizer or a hook), or in how that machine rounds."
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return lines


def recompute(saved: Saved, policy: Policy) -> list[str]:
    """Forward, loss and backward of the batch as the run would make them. Returns what is not finite, a line each, in
    the order in which it arises."""
    found = [f"weight {name}: {_count(p)}" for name, p in _named(policy) if not p.isfinite().all()]
    autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=saved.facts["precision"] == "bf16-mixed")
    for process, (tensors, facts) in enumerate(saved.batches):
        where = f"process {process}, " if len(saved.batches) > 1 else ""
        rows = [f"{where}row {i} (conversation {c})" for i, c in enumerate(facts["conversations"])]
        tensors = {name: t.to(policy.device) for name, t in tensors.items()}
        found += [
            f"{what} of {rows[i]}: {_count(tensors[name][i])}"
            for name, what in INPUTS.items()
            if name in tensors
            for i in _bad_rows(tensors[name])
        ]
        for part in range(int(tensors["parts"].max()) + 1):
            at = (tensors["parts"] == part).nonzero().flatten()
            with first_module(policy) as module, autocast:
                loss, logps, each = _loss(policy, tensors, at, facts)
            found += [f"the output of {name}, its input being finite: {what}" for name, what in module[:1]]
            found += [f"the log-probs of {rows[at[i]]}: {_count(logps[i])}" for i in _bad_rows(logps)]
            found += [f"the loss of {rows[at[i]]}: {float(each[i])}" for i in _bad_rows(each[:, None])]
            if not loss.isfinite() and each.isfinite().all():
                found.append(f"the loss of micro-batch {part}: {float(loss)}, each row's being finite")
            loss.backward()
    gradients = bad_names((name, p.grad) for name, p in policy.named_parameters())
    if found and gradients:  # they follow from it
        return [*found, f"and with it the gradients of {len(gradients)} of {len(list(policy.parameters()))} weights"]
    return found + [f"the gradient of {name}" for name in gradients]


def _loss(
    policy: Policy, tensors: dict[str, Tensor], at: Tensor, facts: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows `at`: the loss, log-probs [b, T], and what each row adds to the loss [b]."""
    batch = TokenBatch(*(tensors[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "mask"))).rows(at)
    width = batch.mask.shape[1]
    logps, _ = policy(batch)
    whole = facts["normalizer"]
    if facts["stage"] == "sft":
        return -logps.sum() / whole, logps.detach(), -logps.detach().sum(-1) / whole
    inputs = {name: tensors[name][at, :width] for name in (*INPUTS, "ranks") if name in tensors}

    def objective(logps: Tensor, rows: slice) -> Tensor:
        old = inputs["old_logps"][rows] if "old_logps" in inputs else logps.detach()
        mask, ranks = batch.mask[rows], inputs["ranks"][rows]
        weights, _ = importance_weights(old, inputs["sampled_logps"][rows], mask, ranks, **facts["correction"])
        reference = inputs["ref_logps"][rows] if "ref_logps" in inputs else None
        return surrogate_loss(
            logps, old, inputs["advantages"][rows], mask, ranks, **facts["objective"], ref_logps=reference,
            normalizer=whole, weights=weights,
        )[0]  # fmt: skip

    each = torch.stack([objective(logps.detach()[i : i + 1], slice(i, i + 1)) for i in range(len(at))])
    return objective(logps, slice(None)), logps.detach(), each


@contextlib.contextmanager
def first_module(policy: Policy) -> Iterator[list[tuple[str, str]]]:
    """Collects (name, what) of modules whose output is not finite while their input is, as they are done."""
    seen: list[tuple[str, str]] = []

    def watch(name: str):
        def hook(module, inputs, keywords, output) -> None:
            given = [t for t in (*inputs, *keywords.values()) if isinstance(t, Tensor) and t.is_floating_point()]
            # Masks hold -inf on purpose; they come by keyword, hidden states by position or as hidden_states.
            hidden = [t for t in given if t is not keywords.get("attention_mask")]
            made = output[0] if isinstance(output, tuple) else output
            if isinstance(made, Tensor) and not made.isfinite().all() and all(t.isfinite().all() for t in hidden):
                seen.append((name, _count(made)))

        return hook

    hooks = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in policy.causal_lm.named_modules()
        if name
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _named(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    return ((name, p.detach()) for name, p in policy.causal_lm.named_parameters())


def _bad_rows(values: Tensor) -> list[int]:
    return (~values.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()


def _count(values: Tensor) -> str:
    values = values.detach()
    return f"{int(values.isnan().sum())} NaN and {int(values.isinf().sum())} infinite of {values.numel()}"
