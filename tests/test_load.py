"""From config to dataset: sizes, checks, demonstrations, prompts of our own around published ones."""

import pytest
from support import make_config

from convrec_r1.base.errors import UserError
from convrec_r1.config.parts import evaluation_key
from convrec_r1.data import Catalog, Conversation, Dataset, Message
from convrec_r1.data.demonstrations import add_demonstrations
from convrec_r1.data.load import digests, load_data, with_demonstrations
from convrec_r1.lists import Item
from convrec_r1.matching import Folded
from convrec_r1.tasks.warm_start import warm_start_key

pytestmark = pytest.mark.long

A, B, C, D, E = (Item(name, 2000) for name in "ABCDE")


def talk(name, truths, seen=(), split="train", demonstration=None) -> Conversation:
    return Conversation(name, name, (Message("user", "hi"),), tuple(truths), tuple(seen), demonstration, split)


def dataset(train) -> Dataset:
    return Dataset(Catalog([A, B, C, D, E]), {"train": list(train), "validation": [], "test": []})


def test_demonstrations_put_truths_first_then_neighbours_then_favourites():
    data = add_demonstrations(
        dataset([talk("1", [A]), talk("2", [A, B]), talk("3", [A, B]), talk("4", [C], seen=["D"]), talk("5", [C, D])]),
        4,
        Folded(),
    )
    lists = {c.id: c.demonstration for c in data["train"]}
    # 1: A; B shares two conversations with A; then by count: C (2) and D (2), in catalog order
    assert lists["1"] == (A, B, C, D)
    # 4: C; its neighbour D has been seen; then the favourites A (3), B (2)
    assert lists["4"] == (C, A, B)


def test_demonstrations_that_exist_stay():
    data = add_demonstrations(dataset([talk("1", [A], demonstration=(E,)), talk("2", [B])]), 3, Folded())
    assert data["train"][0].demonstration == (E,)


def test_no_demonstration_names_items_outside_the_catalog_or_seen():
    data = add_demonstrations(dataset([talk("1", [Item("Z", 1), A], seen=["a"]), talk("2", [B, C])]), 5, Folded())
    for conversation in data["train"]:
        assert all(item in data.catalog for item in conversation.demonstration)
        assert not {i.title.casefold() for i in conversation.demonstration} & set(conversation.seen)


def test_without_demonstrations_there_is_nothing_to_imitate():
    with pytest.raises(UserError, match=r"data\.demonstrations=neighbours"):
        with_demonstrations([talk("1", [A])], 3, "x")
    (one,) = with_demonstrations([talk("1", [A], demonstration=(A, B, C, D)), talk("2", [A])], 3, "x")
    assert one.demonstration == (A, B, C)


def test_movieland_comes_in_the_sizes_asked_for():
    cfg = make_config("data.train_size=30", "data.validation_size=5", "data.test_size=7")
    data = load_data(cfg.data, cfg.n)
    assert [len(data[split]) for split in ("train", "validation", "test")] == [30, 5, 7]
    assert all(len(c.demonstration) == cfg.n for c in data["train"])


def test_real_reddit_in_published_and_in_our_prompts(shared):
    folder = shared / "data" / "reddit_v2"
    common = ("data=reddit_v2", f"data.path={folder / 'jsonl'}", f"data.catalog={folder / 'catalog.csv'}")
    published = load_data(make_config(*common).data, 20)
    assert all(c.has_instruction for c in published["train"])
    ours = load_data(make_config(*common, "data.prompt=ours", "data.train_size=10").data, 20)
    assert len(ours["train"]) == 10
    for conversation in ours["train"] + ours["test"]:
        assert not conversation.has_instruction
        text = "\n".join(m.content for m in conversation.messages)
        assert "recommender system" not in text.split("USER:")[0][:80]
        assert "USER:" not in text
        assert conversation.messages[0].role == "user"
    # A smaller choice is part of a larger one.
    fewer = load_data(make_config(*common, "data.prompt=ours", "data.train_size=4").data, 20)
    assert {c.id for c in fewer["train"]} < {c.id for c in ours["train"]}


def test_real_redial_gets_demonstrations_from_its_neighbours(shared):
    cfg = make_config("data=redial", f"data.path={shared / 'data' / 'redial'}")
    data = load_data(cfg.data, cfg.n)
    assert all(len(c.demonstration) == 20 for c in data["train"])
    for conversation in data["train"][:200]:
        assert conversation.demonstration[0] in conversation.ground_truth


def test_keys_follow_content():
    cfg = make_config("data.train_size=8", "data.validation_size=2", "data.test_size=2")
    data = load_data(cfg.data, cfg.n)
    key = warm_start_key(cfg, data)
    for same in ("logger=none", "algo=grpo", "rl.lr=1", "trainer.micro_batch=3", "eval.ks=[1]"):
        other = make_config("data.train_size=8", "data.validation_size=2", "data.test_size=2", same)
        assert warm_start_key(other, load_data(other.data, other.n)) == key, same
    for different in ("seed=9", "sft.lr=1", "n=9", "model.layers=1", "data.seed=5", "data.instruction=x"):
        other = make_config("data.train_size=8", "data.validation_size=2", "data.test_size=2", different)
        assert warm_start_key(other, load_data(other.data, other.n)) != key, different
    assert digests(data) == digests(load_data(cfg.data, cfg.n))
    assert evaluation_key(cfg, data) == evaluation_key(make_config("algo=grpo"), data)
    assert evaluation_key(cfg, data) != evaluation_key(make_config("eval.ks=[1]"), data)


@pytest.mark.parametrize("slot", ["match", "rollout"])
def test_an_evaluation_is_another_one_once_a_plug_in_behind_it_has_changed(tmp_path, monkeypatch, slot):
    file = tmp_path / "own_slot.py"
    file.write_text("first = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = make_config("data.train_size=8", "data.validation_size=2", "data.test_size=2")
    data = load_data(cfg.data, cfg.n)
    getattr(cfg, slot)._target_ = "own_slot.Class"
    before = evaluation_key(cfg, data)
    assert evaluation_key(cfg, data) == before
    file.write_text("second = 2\n")
    assert evaluation_key(cfg, data) != before


def test_sft_steps_follow_epochs_unless_given():
    cfg = make_config("model=qwen2.5-0.5b", "sft.batch_size=10", "sft.epochs=2.5").sft
    assert cfg.steps_for(100) == 25
    assert cfg.steps_for(1) == 1
    assert make_config("sft.steps=7").sft.steps_for(100) == 7
