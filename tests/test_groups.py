"""Dynamic sampling: groups that teach nothing are replaced, the same on any number of processes and after an interruption."""

from dataclasses import replace

import pytest
import torch
from support import PowerCut, make_config, power_cut
from test_minibatches import Alone
from test_modules import DATA, distance, warm_policy
from test_pipeline import CopyEngine, reinforce

from convrec_r1.modules.groups import Group, replace_flat, varies
from convrec_r1.modules.meters import Meter
from convrec_r1.modules.step import Slots, StepLoader
from convrec_r1.reward.judge import Feedback
from convrec_r1.rollout.hf import HFEngine

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def warm():
    torch.set_num_threads(1)
    return warm_policy()


# ---- the rounds ----


def group(slot: int, name: str) -> Group:
    """A group whose conversation is its name; those in capitals teach. Its reward is the number of the letter."""
    reward = torch.full((2,), float(ord(name.lower()) - ord("a")))
    return Group(slot, name, [], [], Feedback(["", ""], torch.zeros(2, 1), reward[:, None], reward), name.isupper(), 0)  # pyright: ignore[reportArgumentType]


def rounds(start: str, stream: str, limit: int) -> tuple[str, dict[str, float], list]:
    """The groups that are left of `start`, one a slot, the metrics, and what was sampled."""
    left, meter, sampled = iter(stream), Meter(), []

    def sample(slots: Slots, number: int) -> list[Group]:
        sampled.append((number, list(slots)))
        return [group(slot, name) for slot, name in slots]

    groups = replace_flat(
        [group(slot, name) for slot, name in enumerate(start)],
        lambda slots: Slots([(slot, next(left)) for slot in slots]), sample, limit, meter,
    )  # fmt: skip
    assert [g.slot for g in groups] == list(range(len(start)))
    return "".join(g.conversation for g in groups), meter.reduce(Alone()), sampled  # pyright: ignore[reportArgumentType]


def test_open_slots_take_the_next_prompts_until_all_groups_teach():
    left, values, sampled = rounds("AbCd", "eFG", limit=5)
    assert left == "AGCF"
    assert sampled == [(1, [(1, "e"), (3, "F")]), (2, [(1, "G")])]
    assert values == {
        "dynamic_sampling/rounds": 2,
        "dynamic_sampling/groups_dropped": 3,
        "dynamic_sampling/unfilled": 0,
        "dynamic_sampling/reward": pytest.approx((0 + 1 + 2 + 3 + 4 + 5 + 6) / 7),
    }


def test_at_the_limit_slots_keep_their_last_group():
    left, values, _ = rounds("ab", "cdEf", limit=2)
    assert left == "Ef"
    assert values["dynamic_sampling/rounds"] == 2
    assert (values["dynamic_sampling/groups_dropped"], values["dynamic_sampling/unfilled"]) == (4, 1)


def test_a_full_step_samples_nothing():
    left, values, sampled = rounds("AB", "", limit=3)
    assert (left, sampled, values["dynamic_sampling/rounds"]) == ("AB", [], 0)


@pytest.mark.parametrize(
    ("credited", "teaches"),
    [([[1.0], [1.0]], False), ([[1.0], [0.0]], True), ([[0, 1.0], [0, 1.0]], False), ([[0, 1.0], [0, 0.0]], True)],
)
def test_a_group_teaches_where_a_unit_varies(credited, teaches):
    assert varies(torch.tensor(credited)) is teaches


# ---- the stream of prompts ----


def test_drawn_samples_are_not_drawn_again_and_resumption_knows_them():
    loader = StepLoader("abcdefghij", 2, 4, seed=1)
    steps = iter(loader)
    order = [loader.samples[loader.index(place)] for place in range(12)]
    assert [s for _, s in next(steps)] == order[:2]
    assert list(loader.more([1])) == [(1, order[2])]
    coming = [(1, Slots(list(enumerate(order[3:5])))), (2, Slots(list(enumerate(order[5:7]))))]
    assert loader.upcoming(1) == coming[:1]
    assert loader.upcoming(2) == coming, "what is drawn in advance stays"
    assert list(loader.more([0])) == [(0, order[7])]
    assert [s for _, s in next(steps)] == order[3:5]
    assert loader.state_dict() == {"start": 2, "drawn": 8, "claimed": [5]}
    resumed = StepLoader("abcdefghij", 2, 4, seed=1)
    resumed.load_state_dict(loader.state_dict())
    assert len(resumed.upcoming(9)) == 2
    assert [[s for _, s in step] for step in resumed] == [order[5:7], order[8:10]]
    old = StepLoader("abcdefghij", 2, 4, seed=1)
    old.load_state_dict({"start": 2})
    assert [s for _, s in next(iter(old))] == order[4:6]


def test_a_slot_gets_the_same_sample_on_any_number_of_processes():
    one = StepLoader("abcdefghij", 4, 3, seed=1)
    two = [StepLoader("abcdefghij", 4, 3, seed=1, rank=rank, world=2) for rank in range(2)]
    for open_slots in ([0, 1, 3], [3], [1, 2]):
        whole = list(one.more(open_slots))
        assert [pair for loader in two for pair in loader.more(open_slots)] == whole
        assert [slot for slot, _ in whole] == open_slots
    assert {loader.drawn for loader in (one, *two)} == {6}


# ---- whole steps ----


def dapo(*overrides: str):
    """DAPO on lists that mostly earn nothing: many groups are all alike."""
    return make_config(
        "algo=dapo", "n=3", "model.max_completion_length=40", "rl.prompts_per_step=4", "algo.group_size=2", "rl.steps=5",
        "trainer.micro_batch=8", "rl.lr=1e-2", "trainer.checkpoint_every=2", *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_every_group_teaches_and_a_resumed_run_replaces_the_same(warm, tmp_path, overlap):
    cfg = dapo("algo.dynamic_sampling=30", "algo.overlong.cache=0", "rl.lr=1e-3")
    cfg.rollout.overlap = overlap
    whole, rows, _ = reinforce(warm, cfg, tmp_path / "whole")
    assert sum(row["dynamic_sampling/groups_dropped"] for row in rows) > 3, "or this test shows nothing"
    for row in rows:
        assert row["dynamic_sampling/unfilled"] == 0
        assert row["frac_reward_zero_std"] == 0
        of_all = row["dynamic_sampling/reward"] == pytest.approx(row["reward"])
        assert of_all == (not row["dynamic_sampling/rounds"]), "the reward is of what is trained on"
        assert 0 <= row["sampling/staleness"] <= overlap

    with pytest.raises(PowerCut):
        reinforce(warm, cfg, tmp_path / "cut", callbacks=[power_cut(3, total=5)])
    resumed, again, _ = reinforce(warm, cfg, tmp_path / "cut")
    assert distance(whole, resumed) == 0
    for row, other in zip(rows[2:], again[-3:], strict=True):
        for name in ("reward", "dynamic_sampling/reward", "dynamic_sampling/rounds", "dynamic_sampling/groups_dropped"):
            assert row[name] == other[name]


def test_within_the_limit_a_step_is_trained_on_what_there_is(warm, tmp_path):
    """Truths that no list names: no group ever teaches, and each round draws a prompt for each slot."""
    hopeless = [replace(c, ground_truth=(c.ground_truth[0]._replace(title="No Such Film"),)) for c in DATA["train"]]
    engines = []

    def make(policy, **options):
        engines.append(CopyEngine(policy, **options))
        return engines[0]

    cfg = dapo("algo.dynamic_sampling=2", "algo.overlong.cache=0", "rl.steps=2")
    _, rows, _ = reinforce(warm, cfg, tmp_path, make, samples=hopeless)
    assert engines[0].samples == 2 * 3, "two steps of a rollout and two rounds"
    for row in rows:
        assert (row["dynamic_sampling/rounds"], row["dynamic_sampling/groups_dropped"]) == (2, 8)
        assert (row["dynamic_sampling/unfilled"], row["frac_reward_zero_std"], row["grad_norm"]) == (4, 1, 0)


def test_overlong_lists_are_punished_in_the_advantages_and_not_in_the_reward(warm, tmp_path):
    """Every list is longer than L_max = 1: each gets -1, so nothing differs; with a long cache, the shorter ones win."""
    more = ("rl.steps=1", "algo.dynamic_sampling=0", "rl.prompts_per_step=2")
    plain = reinforce(warm, dapo(*more, "algo.overlong.cache=0"), tmp_path / "a", HFEngine)[1][0]
    alike = reinforce(warm, dapo(*more, "algo.overlong={cache: 1, max_length: 1}"), tmp_path / "b", HFEngine)[1][0]
    long = reinforce(warm, dapo(*more, "algo.overlong={cache: 1, max_length: 100}"), tmp_path / "c", HFEngine)[1][0]
    assert "overlong_penalty" not in plain
    assert (alike["overlong_penalty"], alike["reward"]) == (-1, plain["reward"])
    assert alike["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)
    assert long["overlong_penalty"] == pytest.approx(-long["completions/mean_length"] / 100)
    assert long["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-3)
