"""The groups of a step: sampled, judged, and replaced where they teach nothing (dynamic sampling)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from convrec_r1.base.processes import gather
from convrec_r1.data import Conversation
from convrec_r1.modules.meters import Meter
from convrec_r1.modules.step import Slots
from convrec_r1.reward.judge import Feedback
from convrec_r1.rollout.base import Completion
from convrec_r1.rollout.constraint import Opening


@dataclass(frozen=True)
class Group:
    """The G completions of a prompt, judged."""

    slot: int
    """Place in the step."""
    conversation: Conversation
    prompt: list[int]
    completions: list[Completion]
    feedback: Feedback
    """Of its G lists."""
    teaches: bool
    """Whether any advantage within the group differs from 0."""
    staleness: int
    """Steps between the weights that it was sampled from and those that it trains."""
    opening: Opening | None = None
    """What its lists could hold. None: they were held to nothing."""


def varies(credited: Tensor) -> bool:
    """Return whether the values [G, U] that a group's advantages are computed from differ in any unit."""
    return bool((credited != credited[:1]).any())


def rows_of(feedback: Feedback, rows: slice) -> Feedback:
    """Return the feedback of some lists."""
    return Feedback(feedback.texts[rows], feedback.relevance[rows], feedback.returns[rows], feedback.reward[rows])


def joined(parts: Sequence[Feedback]) -> Feedback:
    """Return the feedback of all lists of `parts`."""
    texts = [text for part in parts for text in part.texts]
    relevance, returns, reward = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("relevance", "returns", "reward")
    )
    return Feedback(texts, relevance, returns, reward)


def replace_flat(
    groups: Sequence[Group],
    more: Callable[[Sequence[int]], Slots[Conversation]],
    sample: Callable[[Slots[Conversation], int], list[Group]],
    rounds: int,
    meter: Meter,
) -> list[Group]:
    """Replace groups that teach nothing by groups of new prompts, for at most `rounds` rounds.

    Every process of a run calls this, and samples in every round, some of them for no prompt. What takes a slot depends on
    the slot, not on its process. After the last round, slots without a group that teaches keep the last one they had.

    Adds to `meter`, over all processes: dynamic_sampling/rounds; /groups_dropped, groups that were replaced; /unfilled, slots
    whose group teaches nothing; /reward, the mean reward of all groups, those replaced included.

    Args:
        groups: of this process.
        more: open slots of all processes, sorted -> the next prompts for this process's slots among them.
        sample: prompts and number of the round, from 1 -> their groups.
    """
    kept: dict[int, Group] = {}

    def keep(latest: Sequence[Group]) -> list[int]:
        """Put groups into their slots. Return the slots of all processes whose group teaches nothing."""
        for group in latest:
            kept[group.slot] = group
            meter.mean("dynamic_sampling/reward", group.feedback.reward.mean())
        return sorted(chain(*gather([group.slot for group in latest if not group.teaches])))

    number = dropped = 0
    unfilled = keep(groups)
    while unfilled and number < rounds:
        number, dropped = number + 1, dropped + len(unfilled)
        unfilled = keep(sample(more(unfilled), number))
    for name, value in (("rounds", number), ("groups_dropped", dropped), ("unfilled", len(unfilled))):
        meter.mean(f"dynamic_sampling/{name}", value)
    return list(kept.values())
