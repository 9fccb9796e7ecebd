"""Whether what an update is computed from, and comes to, is finite; what was found where it is not, kept for replay."""

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convrec_r1.base import processes
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, write_json
from convrec_r1.policy import Policy, load_policy
from convrec_r1.policy.config import ModelConfig
from convrec_r1.policy.weights import save_policy

KEPT = 3
"""Faults that are kept, the newest ones: each has a copy of the weights, and a run that skips could fill a disk."""
FORMAT = 1
_SHOWN = 8

LOSS, GRADIENT = "the loss", "the gradient"


class Checks:
    """What one update sees. `see` costs a few small kernels and waits for nothing; `all_finite` waits once an update."""

    def __init__(self) -> None:
        self.part = 0
        """The micro-batch that is being computed."""
        self._seen: list[tuple[str, int, Tensor]] = []

    def see(self, what: str, values: Tensor) -> Tensor:
        """Take in a tensor [B, ...] of the micro-batch's rows, or a scalar of all of them. Returns it as it is."""
        finite = values.detach().isfinite()
        self._seen.append((what, self.part, finite.flatten(1).all(1) if finite.dim() > 1 else finite.all()[None]))
        return values

    def all_finite(self) -> bool:
        return bool(torch.cat([rows for _, _, rows in self._seen]).all()) if self._seen else True

    def found(self) -> list[str]:
        """What was not finite, in the order in which it was seen: what comes first is nearest to the cause."""
        return list(dict.fromkeys(what for what, _, rows in self._seen if not rows.all()))

    def rows(self, parts: Sequence[Tensor]) -> list[int]:
        """Rows of the batch with something that is not finite; all of a micro-batch where only its loss was."""
        bad: set[int] = set()
        for number, part in enumerate(parts):
            seen = [rows for _, at, rows in self._seen if at == number and not rows.all()]
            each = [rows for rows in seen if len(rows) == len(part)]
            if seen:
                bad |= set(part[~torch.stack(each).all(0)].tolist() if each else part.tolist())
        return sorted(bad)


@dataclass(frozen=True)
class Evidence:
    """A process's share of a batch, as it is saved: all that its loss is computed from but the weights."""

    tensors: dict[str, Tensor]
    """`parts` [B] among them: the micro-batch of each row."""
    facts: dict[str, Any]
    """Plain values: the objective's settings, prompts and completions as text."""
    rows: list[int]
    """Those that something was not finite in; empty: not known."""
    slots: list[int]  # [B], the place of each row's sample in the step
    conversations: list[str]  # [B], ids


@dataclass(frozen=True)
class Fault:
    """Something that is not finite."""

    step: int
    """The step that was being made, from 1."""
    update: int
    """Its optimizer update, from 1."""
    what: list[str]
    slots: list[int]
    conversations: list[str]
    """Of the rows that it shows in; of the whole batch where that is not known."""

    def __str__(self) -> str:
        return (
            f"Step {self.step}, update {self.update}: not finite: {_few(self.what)}. Conversations: "
            f"{_few(self.conversations) or 'none'}"
        )


def weights_are_finite(weights: Iterable[Tensor]) -> bool:
    """One pass over the weights. The largest magnitude is NaN or infinite exactly where a weight is, and cannot overflow."""
    held = [w.detach() for w in weights if w.numel()]  # a shard may be empty
    return not held or math.isfinite(nn.utils.get_total_norm(held, math.inf))


def bad_names(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    return [plain_name(name) for name, t in tensors if t is not None and not t.detach().isfinite().all()]


def texts(tensors: Mapping[str, Tensor], policy: Policy) -> dict[str, list[str]]:
    """Prompts and completions of a batch, to read."""

    def of(ids: str, mask: str) -> list[str]:
        rows = zip(tensors[ids], tensors[mask].bool(), strict=True)
        return [policy.text(row[on].tolist()) for row, on in rows]

    return {"prompts": of("prompt_ids", "prompt_mask"), "completions": of("completion_ids", "mask")}


def describe(step: int, update: int, what: Sequence[str], evidence: Evidence) -> Fault:
    """The fault of a step, put together over processes: the same on each."""
    rows = evidence.rows or range(len(evidence.slots))
    mine = (list(what), sorted({(evidence.slots[i], evidence.conversations[i]) for i in rows}), bool(evidence.rows))
    all_of_them = processes.gather(mine)
    located = [share for share in all_of_them if share[2]] or all_of_them
    where = sorted({pair for _, pairs, _ in located for pair in pairs})
    found = list(dict.fromkeys(name for share in all_of_them for name in share[0]))
    # A loss that is not finite leaves hardly a gradient that is: they are the news only where all else is well.
    found = [name for name in found if not name.startswith(GRADIENT)] or found
    return Fault(step, update, found, [slot for slot, _ in where], list(dict.fromkeys(c for _, c in where)))


def save_fault(folder: Path, fault: Fault, evidence: Evidence, policy: Policy, facts: Mapping[str, Any]) -> Path:
    """Write folder/step-000012/: fault.json, a batch-R.safetensors and a rows-R.json for each process R, policy/.

    Called by every process; no pickles. It is written under another name and renamed when it is whole.
    """
    rank, world = processes.in_group()
    target = folder / f"step-{fault.step:06d}"
    scratch = folder / f".{target.name}.partial"
    if rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    processes.barrier()
    save_file({name: t.detach().cpu().contiguous() for name, t in evidence.tensors.items()},
              scratch / f"batch-{rank}.safetensors")  # fmt: skip
    write_json(
        scratch / f"rows-{rank}.json",
        {
            "slots": evidence.slots,
            "conversations": evidence.conversations,
            "not_finite": evidence.rows,
            **evidence.facts,
        },
    )
    save_policy(policy, scratch / "policy", first=rank == 0)
    processes.barrier()
    if rank == 0:
        write_json(scratch / "fault.json", {"format": FORMAT, "processes": world, **asdict(fault), **facts})
        shutil.rmtree(target, ignore_errors=True)
        scratch.replace(target)
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    processes.barrier()
    return target


@dataclass(frozen=True)
class Saved:
    """A fault as it was saved."""

    folder: Path
    facts: dict[str, Any]  # of fault.json
    batches: list[tuple[dict[str, Tensor], dict[str, Any]]]
    """Of each process: its tensors and its rows-R.json."""

    def policy(self, cfg: ModelConfig) -> Policy:
        return load_policy(self.folder / "policy", cfg, temperature=self.facts["temperature"], finite=False)


def read_fault(folder: Path) -> Saved:
    """UserError where `folder` holds no saved fault, or one of another version."""
    if not (folder / "fault.json").is_file():
        raise UserError(
            f"checkpoint={folder} holds no saved batch (no fault.json). task=replay takes a folder that a run left where "
            "something was not finite: checkpoint=RUN/faults/step-000012."
        )
    try:
        facts = read_json(folder / "fault.json")
        if facts["format"] != FORMAT:
            raise UserError(f"{folder / 'fault.json'} is of format {facts['format']}; this version reads {FORMAT}.")
        batches = [
            (load_file(folder / f"batch-{r}.safetensors"), read_json(folder / f"rows-{r}.json"))
            for r in range(facts["processes"])
        ]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} cannot be read: {error}. It is not whole: copy it again.") from error
    return Saved(folder, facts, batches)


def replay_command(folder: Path) -> str:
    return f"python -m convrec_r1 task=replay checkpoint={folder}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def plain_name(name: str) -> str:
    """A parameter's name as in the model's checkpoint."""
    return name.removeprefix("lm.").replace("_fsdp_wrapped_module.", "")
