"""Non-finite values (NaN, Inf) in an optimizer step: find them, name them, save the batch, stop or skip.

A non-finite update is never applied. Non-finite weights always stop training: no later update repairs them.
`StepModule.update` calls `Faults`; losses report their inputs and results to `Checks`.
"""

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_json
from convrec_r1.base.processes import barrier, gather, is_first, rank, world_size
from convrec_r1.modules.config import GuardConfig, NonFinite
from convrec_r1.policy import Policy, TokenBatch

_log = logging.getLogger(__name__)

KEPT = 3  # saved batches, the newest ones: a run that skips could fill a disk
_SHOWN = 8
LOSS, GRADIENT, WEIGHT = "the loss", "the gradient", "weight"


class Checks:
    """What one update has seen. `see` launches a few small kernels and does not wait; `all_finite` waits once."""

    def __init__(self) -> None:
        self.part = 0  # index of the micro-batch that is being computed
        self._seen: list[tuple[str, int, Tensor]] = []

    def see(self, name: str, values: Tensor) -> Tensor:
        """Check `values`: a tensor [B, ...] with a row per sample, or one number for the micro-batch. Return it unchanged."""
        finite = values.detach().isfinite()
        self._seen.append((name, self.part, finite.flatten(1).all(1) if finite.dim() > 1 else finite.all()[None]))
        return values

    def all_finite(self) -> bool:
        """Return whether everything seen so far is finite."""
        return bool(torch.cat([rows for _, _, rows in self._seen]).all()) if self._seen else True

    def found(self) -> list[str]:
        """Return the names of what is not finite, in the order they were seen: the first is nearest to the cause."""
        return list(dict.fromkeys(name for name, _, rows in self._seen if not rows.all()))

    def rows(self, parts: Sequence[Tensor]) -> list[int]:
        """Return the rows with non-finite values, given each micro-batch's rows: all of them where only its loss shows it."""
        bad: set[int] = set()
        for number, part in enumerate(parts):
            seen = [rows for _, at, rows in self._seen if at == number and not rows.all()]
            each = [rows for rows in seen if len(rows) == len(part)]
            if seen:
                bad |= set(part[~torch.stack(each).all(0)].tolist() if each else part.tolist())
        return sorted(bad)


@dataclass(frozen=True)
class Evidence:
    """The batch of an update on one process: the inputs of its loss without the weights."""

    tensors: dict[str, Tensor]
    """[B, ...] each; "parts" [B]: micro-batch of each row. Of constrained lists also "allowed_...", the fields of `Allowed`."""
    normalizer: float  # denominator of the loss
    rows: list[int]  # rows with non-finite values; empty: not known
    slots: list[int]  # [B], position of each row's sample in the step
    conversations: list[str]  # [B], ids


MakeEvidence = Callable[[Checks], Evidence] | None


def evidence_of(
    tokens: TokenBatch, beside: dict[str, Tensor], parts: Sequence[Tensor], checks: Checks, normalizer: float,
    owners: Sequence[tuple[int, str]],
) -> Evidence:  # fmt: skip
    """Return the batch of an update, its rows in the order of its micro-batches, each with its prompt.

    Args:
        tokens: the batch that the parts are of.
        beside: further tensors, [B, ...].
        parts: rows of each micro-batch.
        owners: [B], slot and conversation of each row.
    """
    rows = torch.cat(list(parts))
    prompts = {"prompt_ids": tokens.prompt_ids[tokens.owner], "prompt_mask": tokens.prompt_mask[tokens.owner]}
    tensors = prompts | {"completion_ids": tokens.completion_ids, "mask": tokens.mask} | beside
    tensors = {name: t[rows] for name, t in tensors.items()}
    if tokens.allowed is not None:
        tensors |= {f"allowed_{name}": t for name, t in vars(tokens.allowed.rows(rows, tokens.mask.shape[1])).items()}
    tensors["parts"] = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    at = {int(row): place for place, row in enumerate(rows)}
    bad = sorted(at[row] for row in checks.rows(parts))
    whose = [owners[int(row)] for row in rows]
    return Evidence(tensors, normalizer, bad, [slot for slot, _ in whose], [name for _, name in whose])


@dataclass(frozen=True)
class Fault:
    """A non-finite update."""

    step: int  # from 1
    update: int  # optimizer update within the step, from 1
    what: list[str]
    slots: list[int]
    conversations: list[str]  # of the rows with non-finite values; of the whole batch where these are not known

    def __str__(self) -> str:
        where = _few(self.conversations) or "none"
        return f"Step {self.step}, update {self.update}: not finite: {_few(self.what)}. Conversations: {where}"


class Faults:
    """Handle the non-finite updates of one training, as `guard.nonfinite` says."""

    def __init__(self, cfg: GuardConfig, policy: Policy) -> None:
        self.cfg, self.policy = cfg, policy
        self.folder: Path | None = None  # directory for non-finite batches; None: do not save them
        self.skipped = self.in_a_row = 0  # updates skipped: in the whole training, and since one was applied
        self.checks = Checks()
        self._at = (0, 0)  # step and update, from 1
        self._saved = 0  # step of the batch that was saved last

    def begin(self, step: int) -> Checks:
        """Start an update of `step` (from 0). Return the checks that its losses report to."""
        self._at = (step + 1, self._at[1] + 1 if self._at[0] == step + 1 else 1)
        self.checks = Checks()
        return self.checks

    def skip_or_stop(self, norm: float, *, sharded: bool, evidence: MakeEvidence) -> None:
        """Record an update that must not be applied. Return where it is skipped; UserError where training stops.

        norm: of the gradient. sharded: FSDP has clipped the gradients, which spreads one NaN to all of them.
        """
        gradients = []
        if not math.isfinite(norm):
            names = [] if sharded else bad_names((n, p.grad) for n, p in self.policy.named_parameters())
            gradients = [f"{GRADIENT} of {name}" for name in names]
            gradients = gradients or [GRADIENT if sharded else f"{GRADIENT}'s norm, each gradient being finite"]
        fault, saved = self._record([*self._weights(), *self.checks.found(), *gradients], evidence)
        self.in_a_row += 1
        patience = self.cfg.nonfinite_patience
        if any(name.startswith(f"{WEIGHT} ") for name in fault.what):
            reason = "Non-finite weights cannot be skipped: go back to an earlier checkpoint."
        elif self.cfg.nonfinite is NonFinite.stop:
            reason = (
                "The update was not applied: the weights are unchanged. To skip such updates: guard.nonfinite=skip."
            )
        elif self.in_a_row > patience:
            reason = f"{patience} updates in a row were skipped before it (guard.nonfinite_patience={patience})."
        else:
            self.skipped += 1
            _log.warning("%s. The update is skipped (guard.nonfinite=skip). %s", fault, saved)
            return
        raise UserError(f"{fault}. {reason} {saved}")

    def stop_after_update(self, norm: float, lr: float, evidence: MakeEvidence) -> NoReturn:
        """Raise UserError: the optimizer has made weights non-finite, from a finite gradient of this norm."""
        after = f" (after this update, with a gradient of norm {norm:.3g})"
        fault, saved = self._record([name + after for name in self._weights()], evidence)
        raise UserError(
            f"{fault}. The optimizer made them so: lower the learning rate ({lr:g} now) or grad_clip, and go back to an "
            f"earlier checkpoint. {saved}"
        )

    def _weights(self) -> list[str]:
        return [f"{WEIGHT} {name}" for name in bad_names(self.policy.named_parameters())]

    def _record(self, what: list[str], evidence: MakeEvidence) -> tuple[Fault, str]:
        """Return the fault, and a sentence on where its batch is saved: of each step the first one is."""
        batch = evidence(self.checks) if evidence else Evidence({}, 0.0, [], [], [])
        fault = describe(*self._at, what, batch)
        if self.folder is None or evidence is None:
            return fault, ""
        target = self.folder / f"step-{fault.step:06d}"
        if self._saved != fault.step:
            self._saved = fault.step
            save_fault(target, fault, batch, self.policy)
        return fault, f"\nThe batch is saved in {target}."


def describe(step: int, update: int, what: Sequence[str], batch: Evidence) -> Fault:
    """Merge what the processes found. Every process gets the same fault."""
    rows = batch.rows or range(len(batch.slots))
    shares = gather((list(what), sorted({(batch.slots[i], batch.conversations[i]) for i in rows}), bool(batch.rows)))
    located = [share for share in shares if share[2]] or shares
    where = sorted({pair for _, pairs, _ in located for pair in pairs})
    found = list(dict.fromkeys(name for share in shares for name in share[0]))
    # A non-finite loss makes most gradients non-finite: name them only where nothing else is.
    found = [name for name in found if not name.startswith(GRADIENT)] or found
    return Fault(step, update, found, [slot for slot, _ in where], list(dict.fromkeys(c for _, c in where)))


def save_fault(target: Path, fault: Fault, batch: Evidence, policy: Policy) -> None:
    """Write target/, a folder step-000012: fault.json, and batch-R.safetensors and rows-R.json for each process R.

    Called by every process. Written under another name and renamed when complete. The weights are not saved: the newest
    checkpoint and the run's seed give them again.
    """
    scratch = target.parent / f".{target.name}.partial"
    if is_first():
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    barrier()
    tensors = {name: t.detach().cpu().contiguous() for name, t in batch.tensors.items()}
    save_file(tensors, scratch / f"batch-{rank()}.safetensors")
    about: dict[str, Any] = {"slots": batch.slots, "conversations": batch.conversations, "not_finite": batch.rows}
    for name, ids, mask in (("prompts", "prompt_ids", "prompt_mask"), ("completions", "completion_ids", "mask")):
        rows = zip(tensors[ids], tensors[mask].bool(), strict=True)
        about[name] = [policy.text(row[on].tolist()) for row, on in rows]
    write_json(scratch / f"rows-{rank()}.json", about | {"normalizer": batch.normalizer})
    barrier()
    if is_first():
        write_json(scratch / "fault.json", {"processes": world_size(), **asdict(fault)})
        shutil.rmtree(target, ignore_errors=True)
        scratch.replace(target)
        for old in sorted(target.parent.glob("step-*"))[:-KEPT]:
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    barrier()


def weights_are_finite(weights: Iterable[Tensor]) -> bool:
    """Return whether all weights are finite, by their largest magnitude: a sum of squares could overflow."""
    held = [w.detach() for w in weights if w.numel()]  # a shard may be empty
    return not held or math.isfinite(nn.utils.get_total_norm(held, math.inf))


def bad_names(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Return the names of the tensors with non-finite values."""
    return [plain_name(name) for name, t in tensors if t is not None and not t.detach().isfinite().all()]


def plain_name(name: str) -> str:
    """Return a parameter's name as in the model's checkpoint."""
    return name.removeprefix("lm.").replace("_fsdp_wrapped_module.", "")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
