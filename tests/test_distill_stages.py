"""The stages of Stage 1 in this process: what each makes, what can be left out or replaced, and what the card says of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from support import SHARED, make_config
from test_distill import SMALL, asked_of, setup_of

from convrec_r1.base.errors import UserError
from convrec_r1.cluster.blocks import LOOP
from convrec_r1.data import Catalog
from convrec_r1.data.load import load_data
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.distill import adjust, pipeline
from convrec_r1.distill.card import render
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.embedders.tfidf import TfidfEmbedder
from convrec_r1.distill.measure import Measure, card_values
from convrec_r1.distill.pipeline import conversations_only, run
from convrec_r1.distill.questions import recommend
from convrec_r1.distill.teachers.base import Answer, make_teacher
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.lists import Item
from convrec_r1.matching import Normalised
from convrec_r1.policy.prompts import dialogue

pytestmark = pytest.mark.long


def staged(tmp_path, *overrides: str):
    """The pipeline itself, on movieland."""
    cfg = make_config(*SMALL, *overrides)
    data = load_data(cfg.data, cfg.n, need=["train"])
    return cfg, data, asked_of(cfg.teacher, cfg, data, tmp_path)


@pytest.mark.parametrize(
    ("choice", "stages"),
    [
        ("as_said", ["matched"]),
        ("matched", ["matched"]),
        ("remap", ["matched", "remap"]),
        ("without_adjust", ["matched", "remap", "reflect"]),
        ("without_reflect", ["matched", "remap", "adjust"]),
        ("without_remap", ["matched", "reflect", "adjust"]),
    ],
)
def test_parts_can_be_left_out(tmp_path, choice, stages):
    _, _, found = staged(tmp_path, f"distill={choice}")
    assert list(found.stages) == stages
    named = [set(found.matches.index[ids].tolist()) for ids in found.raw.lists]
    for stage, lists in found.stages.items():
        for row, chosen in zip(named, lists, strict=True):
            if stage == "matched" or choice == "without_remap":
                assert set(chosen.tolist()) <= row | {-1}, "without Remap an item that was not named is not listed"
    if "reflect" not in stages:
        assert found.judged is None


def test_each_stage_is_what_its_formula_says(tmp_path):
    """From the pipeline's own inputs, the long way round: dense, one conversation at a time."""
    cfg, data, found = staged(tmp_path, "distill.scores=true", "distill.adjust.strength=0.5")
    items = list(data.catalog)
    gamma = cfg.distill.reflect.gamma
    assert found.candidates is not None
    for row, conversation in enumerate(found.conversations):
        judged = dict(zip(found.candidates[row].tolist(), found.ratings[row].tolist(), strict=True))
        places = found.matches.index[found.raw.lists[row]].tolist()
        for column, place in enumerate(found.stages["adjust"][row].tolist()):
            part = {name: values[row, column] for name, values in found.parts.items()}
            exact = sum(1 / np.sqrt(k) for k, named in enumerate(places, start=1) if named == place)
            assert part["exact"] == pytest.approx(exact, abs=1e-5)
            assert part["rating"] == judged.get(place, 0)
            whole = part["similarity"] + part["exact"] + part["context"] + gamma * part["rating"]
            assert part["score"] == pytest.approx(whole, abs=1e-5)
            final = found.adjustment.w[place] * whole + found.adjustment.b[place]
            assert part["final"] == pytest.approx(final, abs=1e-5)
            assert items[place].title not in conversation.seen


OWN = """
import numpy as np
from convrec_r1.distill.teachers.base import Answer

class Stubborn:
    identity = "stubborn"

    def __init__(self, film, common):
        self.film, self.name = film, common.name

    async def answer(self, question):
        return Answer(f"1. {self.film}" if question.kind == "recommend" else "", 1, 1)

    async def close(self): ...

class Lengths:
    def __init__(self, width):
        self.width = width

    def embed(self, items, conversations):
        unit = np.eye(self.width, dtype=np.float32)
        return tuple(unit[[len(text) % self.width for text in texts]] for texts in (items, conversations))
"""


def test_a_teacher_and_an_embedder_of_a_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_stage1.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = make_config(*SMALL, "distill=remap", "distill.remap.context_weight=0.1")
    data = load_data(cfg.data, cfg.n, need=["train"])
    own = {"_target_": "own_stage1.Stubborn", "name": "own", "cache": str(tmp_path / "cache")}
    teacher = TeacherConfig(**own, options={"film": "Alien (1979)"})
    found = asked_of(teacher, cfg, data, tmp_path, embedder={"_target_": "own_stage1.Lengths", "width": 4})
    alien = list(data.catalog).index(Item("Alien", 1979))
    unseen = [row for row, c in enumerate(found.conversations) if "Alien" not in c.seen]
    assert len(unseen) > 20
    assert (found.stages["remap"][unseen, 0] == alien).all(), "the exact match and its own vector put it first"
    with pytest.raises(UserError, match=r"teacher\.wrong: own_stage1\.Stubborn takes no such option; it takes: film"):
        make_teacher(TeacherConfig(**own, options={"wrong": 1}), seed=0, sizes={})
    with pytest.raises(UserError, match="not a Teacher"):
        make_teacher(TeacherConfig(**own | {"_target_": "own_stage1.Lengths"}, options={"width": 1}), seed=0, sizes={})


class Silent:
    """A teacher that has nothing to say."""

    identity = "silent"

    async def answer(self, question) -> Answer:
        return Answer("", 1, 0)

    async def close(self) -> None: ...


@pytest.mark.parametrize("choice", ["full", "without_remap", "matched"])
def test_a_teacher_that_names_nothing(tmp_path, choice):
    """Allowed by the config, the context alone has a say, and without Remap there are no lists. Else it is a fault."""
    cfg = make_config(*SMALL, f"distill={choice}", "teacher.most_refused=1")
    data = load_data(cfg.data, cfg.n, need=["train"])
    with AnswerCache(tmp_path / "cache") as cache, Interview(Silent(), cache, cfg.teacher) as interview:
        found = run(setup_of(cfg), data, interview, tmp_path)
        with pytest.raises(UserError, match=r"gives no usable answer to every question.*teacher\.extra_tokens"):
            Interview(Silent(), cache, make_config(*SMALL).teacher).ask(
                [recommend(data["train"][0], 5, "{n}")], "Lists"
            )
    chosen = list(found.stages.values())[-1]
    assert (chosen >= 0).all() if choice == "full" else (chosen < 0).all()
    if found.judged:
        assert found.judged.unread == found.judged.candidates == (340 if choice == "full" else 0)


@pytest.mark.skipif(not (SHARED / "data" / "reddit_v2").is_dir(), reason="needs ../shared/data/reddit_v2")
def test_the_words_of_the_instruction_draw_no_film_to_every_conversation():
    """The Conversation (1974) was among the 10 nearest films of 74 of 75 published samples."""
    cfg = make_config("data=reddit_v2", f"data.path={SHARED / 'data' / 'reddit_v2' / 'jsonl'}", "data.prompt=published")
    data = load_data(cfg.data, cfg.n, need=["train"])
    every = [c for split in data.splits.values() for c in split]
    heard = conversations_only(setup_of(cfg).adapter, every)
    near = {}
    for name, conversations in (("whole", every), ("heard", heard)):
        films, said = TfidfEmbedder(cfg.embedder).embed([*map(str, data.catalog)], [dialogue(c) for c in conversations])
        top = np.argsort(-(said @ films.T).toarray(), axis=1, kind="stable")[:, :10]
        place = list(data.catalog).index(Item("The Conversation", 1974))
        near[name] = int((top == place).any(axis=1).sum())
    assert len(every) == 75
    assert near == {"whole": 74, "heard": 0}


def test_stage_1_finds_seen_titles_and_truths_by_the_rule_of_the_reward(monkeypatch):
    """Seen "Title (Year)", a truth in another spelling, and one that stands there twice."""
    items = [Item("Am\u00e9lie", 2001), Item("Heat", 1995), Item("The Matrix", 1999)]
    truths = (Item("Amelie", 2001), Item("Matrix, The", 1999), Item("The Matrix", None))
    talk = Conversation("c", "c", (Message("user", "?"),), truths, seen=("heat (1995)",))
    assert [places.tolist() for places in pipeline._seen([talk], items, Normalised())] == [[1]]
    given = []
    monkeypatch.setattr(pipeline, "fit_adjust", lambda store, rows, truths, strength, each: given.extend(truths))
    cfg = make_config("match=normalised", "distill.adjust.strength=0.01")
    found = SimpleNamespace(conversations=[talk], train=1)
    pipeline._adjust(setup_of(cfg), Catalog(items), None, found, LOOP)  # pyright: ignore[reportArgumentType]
    assert [places.tolist() for places in given] == [[0, 2]]


def test_the_card_says_that_adjust_did_not_converge(tmp_path, monkeypatch):
    monkeypatch.setattr(adjust, "_MOST_ITERATIONS", 1)
    cfg, data, found = staged(tmp_path, "distill.reflect.enabled=false")
    assert found.adjustment is not None
    assert not found.adjustment.converged
    popularity = Popularity.from_conversations(data["train"], data.catalog, setup_of(cfg).matching)
    measure = Measure(lambda *_: None, [5], "ndcg@5", 10, 0.95)
    values = card_values(setup_of(cfg), cfg.teacher, found, popularity, {}, measure)
    assert values["adjust"]["converged"] is False
    said = render({**values, "asked": {"kinds": {}, "retries": {}}, "seconds": 1.0})
    assert "Adjust did not converge" in said
    assert "not converged in every fold" in said
