"""Stage 1's smaller parts: what is asked, ratings over shuffles, skew, files."""

import asyncio
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from datasets import load_from_disk
from support import make_config

from convrec_r1.base.errors import UserError
from convrec_r1.data import movieland
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.adapters.reddit_v2 import RedditV2
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset, Message
from convrec_r1.distill import export
from convrec_r1.distill.config import ReflectConfig, SimulatedTeacherConfig
from convrec_r1.distill.demonstrations import with_distilled
from convrec_r1.distill.measure import skew
from convrec_r1.distill.questions import describe, judge, recommend, repair
from convrec_r1.distill.reflect import reflect
from convrec_r1.distill.teachers.base import Answer
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.distill.teachers.simulated import SimulatedTeacher
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.lists import Item
from convrec_r1.matching import Folded

HEAT, ALIEN, CLUE, BIG = Item("Heat", 1995), Item("Alien", 1979), Item("Clue", 1985), Item("Big", 1988)
FILMS = [HEAT, ALIEN, CLUE, BIG]


def talk(name: str = "c", **fields) -> Conversation:
    return Conversation(name, name, (Message("user", "Something tense?"),), (HEAT,), **fields)


class Opinionated:
    """Judges as it was told to, item by item; adds `first` to whatever it is shown first."""

    identity = "opinionated"

    def __init__(self, opinions: dict[Item, str], first: int = 0, mends: bool = True) -> None:
        self.opinions, self.first, self.mends = opinions, first, mends
        self.shown: list[tuple[Item, ...]] = []

    async def answer(self, question) -> Answer:
        items = question.subject.candidates
        repairing = len(question.messages) > 1
        if not repairing:
            self.shown.append(items)
        lines = []
        for number, item in enumerate(items, start=1):
            said = self.opinions[item]
            if said.lstrip("-").isdigit():
                said = str(int(said) + (self.first if number == 1 else 0))
            elif repairing and self.mends:
                said = "1"
            lines.append(f"{number}: {said}")
        return Answer("\n".join(lines), 1, 1)

    async def close(self) -> None: ...


def judged(teacher, tmp_path, candidates, conversations=None, seed=0, **settings):
    cfg = make_config().teacher
    with AnswerCache(tmp_path / "cache") as cache, Interview(teacher, cache, cfg) as interview:
        named = [
            f"c{row}" for row in range(len(candidates))
        ]  # and speaking differently: the same question is asked once
        conversations = conversations or [replace(talk(name), messages=(Message("user", name),)) for name in named]
        return reflect(
            interview, conversations, np.array(candidates), FILMS, ReflectConfig(**settings), domain="movies", seed=seed
        )


def test_ratings_belong_to_items_however_they_were_shuffled(tmp_path):
    teacher = Opinionated({HEAT: "2", ALIEN: "1", CLUE: "-2", BIG: "0"})
    found, counts = judged(teacher, tmp_path, [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, -1, -1]])
    assert found.tolist() == [[2, 1, -2, 0], [0, -2, 1, 2], [-2, 2, 0, 0]]
    assert (counts.questions, counts.candidates, counts.unread, counts.repairs) == (3, 10, 0, 0)


def test_the_order_is_seeded_and_differs_between_conversations_shuffles_and_seeds(tmp_path):
    def shown(**settings):
        teacher = Opinionated(dict.fromkeys(FILMS, "0"))
        judged(teacher, tmp_path / str(len(list(tmp_path.iterdir()))), [[0, 1, 2, 3]] * 8, **settings)
        return sorted(teacher.shown)

    once = shown()
    assert once == shown(), "the same seed shows the same orders"
    assert len(set(once)) > 1, "not every conversation has the same order"
    assert once != shown(seed=1)
    assert len(shown(shuffles=2)) == 16


def test_a_bias_for_what_is_shown_first_averages_out_over_shuffles(tmp_path):
    def spread(shuffles: int) -> float:
        teacher = Opinionated(dict.fromkeys(FILMS, "0"), first=2)
        found, _ = judged(teacher, tmp_path / str(shuffles), [[0, 1, 2, 3]] * 40, shuffles=shuffles)
        return float(found.std())

    # One of four items gets 2 by chance: sd sqrt(3)/2 with one shuffle, divided by sqrt(16) with sixteen.
    assert spread(1) == pytest.approx(3**0.5 / 2, rel=1e-6)
    assert spread(16) == pytest.approx(3**0.5 / 8, rel=0.25)


def test_many_candidates_are_shown_in_several_questions(tmp_path):
    teacher = Opinionated({HEAT: "2", ALIEN: "1", CLUE: "-2", BIG: "0"})
    found, counts = judged(teacher, tmp_path, [[0, 1, 2, 3]], per_question=3)
    assert sorted(map(len, teacher.shown)) == [1, 3]
    assert counts.questions == 2
    assert found.tolist() == [[2, 1, -2, 0]]


def test_what_cannot_be_read_is_asked_for_again_then_counts_as_zero(tmp_path):
    opinions = {HEAT: "2", ALIEN: "superb", CLUE: "7", BIG: "0"}
    found, counts = judged(Opinionated(opinions), tmp_path / "a", [[0, 1, 2, 3]])
    # 7 is no score either, and the stubborn answer to the repair is read no better than the first.
    assert found.tolist() == [[2, 1, 0, 0]]
    assert (counts.repairs, counts.repaired, counts.unread) == (1, 1, 1)
    found, counts = judged(Opinionated(opinions, mends=False), tmp_path / "b", [[0, 1, 2, 3]], repairs=2)
    assert found.tolist() == [[2, 0, 0, 0]]
    assert (counts.repairs, counts.repaired, counts.unread) == (2, 0, 2)
    found, counts = judged(Opinionated(opinions), tmp_path / "c", [[0, 1, 2, 3]], repairs=0)
    assert (counts.repairs, counts.unread) == (0, 2)


def test_a_repair_keeps_the_numbering_and_names_what_is_missing():
    asked = judge(talk(), FILMS, "movies")
    again = repair(asked, "1: 2", [2, 4])
    assert again.messages[: len(asked.messages)] == asked.messages
    assert again.messages[-2].content == "1: 2"
    assert "2, 4" in again.messages[-1].content
    assert "2. Alien (1979)" in asked.messages[0].content


def test_a_recommendation_is_asked_for_with_the_prompt_that_policies_get():
    question = recommend(talk(), 7, "Recommend {n} movies.")
    assert question.messages[0].content == "Recommend 7 movies.\nUser: Something tense?"
    published = replace(talk(), has_instruction=True)
    assert recommend(published, 7, "Recommend {n}.").messages[0].content == "Something tense?"


def test_questions_in_braces_are_asked_as_they_are():
    odd = Item("{n} {domain} {", 1999)
    assert "1. {n} {domain} { (1999)" in describe([odd], "movies").messages[0].content
    assert "1. {n} {domain} { (1999)" in judge(talk(), [odd], "movies").messages[0].content


def test_skew_by_hand():
    popularity = Popularity(
        FILMS, [6, 2, 1, 1]
    )  # head: Heat (0 < 10/3); mid: none before 20/3... Alien (6 < 20/3); tail: others
    found = skew(np.array([[0, 0, 1], [0, 2, -1]]), popularity)
    assert (found["head"], found["mid"], found["tail"]) == (3 / 5, 1 / 5, 1 / 5)
    assert found["mean_rank"] == (1 + 1 + 2 + 1 + 3) / 5
    assert found["coverage"] == 3 / 4
    # counts 0, 1, 1, 3: (-3*0 - 1*1 + 1*1 + 3*3) / (4 * 5)
    assert found["gini"] == pytest.approx(9 / 20)
    # |3/5 - 6/10| + |1/5 - 2/10| + |1/5 - 1/10| + |0 - 1/10|, halved
    assert found["distance"] == pytest.approx(0.1)


def test_skew_of_what_users_wanted_has_no_distance_from_itself():
    found = skew(np.repeat(range(4), [6, 2, 1, 1]), Popularity(FILMS, [6, 2, 1, 1]))
    assert found["distance"] == 0
    assert found["head"] == 0.6


def test_skew_without_entries_or_interactions():
    assert skew(np.full((2, 3), -1), Popularity(FILMS, [1, 1, 1, 1])) == {}
    assert set(skew(np.array([0, 1]), Popularity(FILMS, [0, 0, 0, 0]))) == {"coverage", "gini"}


def dataset() -> Dataset:
    train = [
        talk("a", demonstration=(ALIEN, Item("8½", None)), seen=("Heat",)),
        talk("b"),
    ]
    return Dataset(
        Catalog([*FILMS, Item("8½", None)]),
        {"train": train, "validation": [], "test": [replace(talk("t"), split="test")]},
    )


def test_the_dataset_reads_back_as_it_was(tmp_path):
    data = dataset()
    export.write_dataset(data, tmp_path)
    again = jsonl.Jsonl(tmp_path).load()
    assert again["train"] == data["train"]
    assert again["test"] == data["test"]
    assert list(again.catalog) == list(data.catalog)


def test_the_arrow_folders_have_the_public_form(tmp_path):
    export.write_arrow(dataset(), tmp_path, "Recommend 2 movies.")
    rows = load_from_disk(str(tmp_path / "train"))
    assert rows.column_names == ["prompt", "completion", "seen_titles", "groundtruth_with_release_year"]
    assert rows[0] == {
        "prompt": [{"content": "Recommend 2 movies.\nUser: Something tense?", "role": "user"}],
        "completion": [{"content": "Alien (1979)\n8½", "role": "assistant"}],
        "seen_titles": ["Heat"],
        "groundtruth_with_release_year": [["Heat", "1995"]],
    }
    assert len(rows) == 1, "a conversation without a demonstration teaches SFT nothing"
    assert ("Heat", 1995) in pickle.loads((tmp_path / "gt_catalog.pkl").read_bytes())


def test_our_reader_of_the_public_form_reads_them(tmp_path):
    data = dataset()
    export.write_arrow(data, tmp_path, "Recommend 2 movies.")
    again = RedditV2(tmp_path, Folded()).load()
    assert again["train"][0].demonstration == (ALIEN,)  # that form has no items without a year
    assert again["train"][0].has_instruction
    assert list(again.catalog) == list(data.catalog)


def test_demonstrations_take_the_place_of_a_datasets_own(tmp_path):
    data = dataset()
    export.write_dataset(data, tmp_path)
    other = replace(talk("b"), demonstration=(CLUE,))
    found = with_distilled(Dataset(data.catalog, {"train": [talk("a"), other], "validation": [], "test": []}), tmp_path)
    assert [c.demonstration for c in found["train"]] == [(ALIEN, Item("8½", None)), None]


def test_demonstrations_of_other_conversations_are_refused(tmp_path):
    data = dataset()
    export.write_dataset(data, tmp_path)
    changed = replace(talk("a"), messages=(Message("user", "Something funny?"),))
    with pytest.raises(UserError, match="another conversation of that id"):
        with_distilled(Dataset(data.catalog, {"train": [changed], "validation": [], "test": []}), tmp_path)
    with pytest.raises(UserError, match="none of which is in this dataset"):
        with_distilled(Dataset(data.catalog, {"train": [talk("z")], "validation": [], "test": []}), tmp_path)


def test_the_simulated_teacher_answers_in_words_and_always_the_same():
    sizes = {"train": 30, "validation": 1, "test": 1}
    data = movieland.load(seed=0, sizes=sizes)
    teacher = SimulatedTeacher(SimulatedTeacherConfig(), 0, sizes)

    def ask(question):
        return asyncio.run(teacher.answer(question)).text

    conversation = data["train"][0]
    listed = ask(recommend(conversation, 10, "Recommend {n}."))
    assert listed == ask(recommend(conversation, 10, "Recommend {n}."))
    assert len(listed.splitlines()) == 10
    catalog = list(data.catalog)
    judgement = ask(judge(conversation, catalog[:50], "movies"))
    assert judgement.splitlines()[0].startswith("1: ")
    described = [json.loads(line) for line in ask(describe(catalog[:3], "movies")).splitlines() if line.startswith("{")]
    assert all(entry["genres"] for entry in described)


def test_the_simulated_judge_knows_what_was_said():
    """Films that fit what was said are judged better than others: its scores and the affinity go together."""
    sizes = {"train": 60, "validation": 1, "test": 1}
    samples = movieland.load_samples(seed=0, sizes=sizes)
    data = movieland.load(seed=0, sizes=sizes)
    teacher = SimulatedTeacher(SimulatedTeacherConfig(), 0, sizes)
    table = movieland.simulator.film_table()
    items = list(data.catalog)
    fits = []
    for conversation in data["train"]:
        text = asyncio.run(teacher.answer(judge(conversation, items, "movies"))).text
        pairs = [line.split(": ") for line in text.splitlines() if line[-1].isdigit()]
        if not pairs:
            continue  # an answer in prose
        places = [table.index[items[int(number) - 1]] for number, _ in pairs]
        affinity = table.affinity(samples[conversation.id].spoken)[places]
        fits.append(np.corrcoef(affinity, [int(score) for _, score in pairs])[0, 1])
    assert len(fits) > 50
    assert np.mean(fits) > 0.5
