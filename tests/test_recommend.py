"""A trained policy in use: from Python, from the command line, in a conversation."""

import asyncio
import io
import json
import re
import shutil
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from doc_examples import commands
from rich.console import Console
from support import PATHS, ROOT, SMOKE, assert_user_error, make_config, run_command, start_command

import convrec_r1
from convrec_r1 import Recommender
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, read_jsonl
from convrec_r1.config.checks import check
from convrec_r1.data import Catalog
from convrec_r1.data.schema import Message
from convrec_r1.lists import Item
from convrec_r1.policy import load_policy
from convrec_r1.policy.batch import TokenBatch
from convrec_r1.policy.config import ModelConfig
from convrec_r1.rl import segment_ranks
from convrec_r1.serve import Busy, Closed, Request
from convrec_r1.serve.chat import Chat
from convrec_r1.serve.hf import HFStepper
from convrec_r1.serve.package import CATALOG, SETTINGS, read_package
from convrec_r1.serve.session import Session
from convrec_r1.serve.stepper import Written
from convrec_r1.tasks.chat import chat
from convrec_r1.tasks.recommend import recommend

pytestmark = pytest.mark.processes("recommend")

ASKED = "I loved Heat. Something like it?"
TALK = [
    {"role": "user", "content": "Hi! Something funny, please."},
    {"role": "assistant", "content": "Old or new?"},
    {"role": "user", "content": "Rather newer."},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run."""
    cwd = tmp_path_factory.mktemp("trained")
    options = (
        "algo=sft",
        "eval.baselines=[]",
        "model.layers=1",
        "model.max_completion_length=100",
        "model.max_prompt_length=1900",
    )
    done = run_command(*SMOKE, *options, "hydra.run.dir=run", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "run"


@pytest.fixture(scope="module")
def recommender(run):
    with Recommender.load(run, engine="hf", device="cpu") as recommender:
        yield recommender


@pytest.fixture(scope="module")
def catalog(run) -> Catalog:
    package = read_package(run / "package")
    assert package is not None
    assert package.catalog is not None
    return package.catalog


TASKS = {"recommend": recommend, "chat": chat}


def texts(found) -> list[str]:
    return [str(one) for one in found]


def plain_policy(run: Path, folder: Path) -> Path:
    """A folder of transformers', without a file of ours."""
    shutil.copytree(run / "checkpoints" / "last" / "policy", folder)
    return folder


# Lists


def test_a_list_has_n_different_items_of_the_catalog_none_of_them_seen(recommender, catalog):
    first = recommender.recommend(ASKED)
    assert len(first) == 5  # as the run was trained
    found = recommender.recommend(ASKED, n=40, seen=[first[0].title], exclude=[str(first[1]), first[2].item])
    assert len({one.item for one in found}) == 40
    assert all(one.item in catalog for one in found)
    assert not {one.item for one in first[:3]} & {one.item for one in found}
    assert [one.rank for one in found] == list(range(1, 41))
    assert texts(found)[0] == f"{found[0].title} ({found[0].year})"
    assert all(one.score < 0 for one in found)
    assert set(found[0].metadata) == {"genre", "keyword", "person"}


def test_a_condition_narrows_the_catalog_and_a_short_list_says_why(recommender):
    found = recommender.recommend(TALK, n=20, where="genre=comedy and year>1990")
    assert len(found) == 20
    assert all("comedy" in one.metadata["genre"] and one.year > 1990 for one in found)
    (reply,) = recommender.ask([Request(ASKED, 20, where="year=1979", seen=["Alien", "Nothing of it"])])
    assert texts(reply.result()) == ["Mad Max (1979)"]
    assert reply.notes == [
        "Not in the catalog: Nothing of it.",
        "1 of 20: no more items are left by the catalog, the condition and what is excluded.",
    ]
    assert recommender.recommend(ASKED, where="year<1900") == []


def test_a_batch_equals_its_conversations_one_by_one_and_a_stream_equals_its_list(recommender):
    several = [ASKED, TALK, "Something scary, with robots in it", [Message("user", ASKED)]]
    batch = recommender.recommend(several, n=6)
    for conversation, found in zip(several, batch, strict=True):
        alone = recommender.recommend(conversation, n=6)
        assert texts(alone) == texts(found)
        assert [one.score for one in alone] == pytest.approx([one.score for one in found], abs=1e-4)
        assert list(recommender.stream(conversation, n=6)) == alone
    assert batch[0] == batch[3] or texts(batch[0]) == texts(batch[3])


def test_items_arrive_while_the_list_is_written(recommender):
    reply = recommender.session.submit(Request(ASKED, 60))
    first = next(iter(reply))
    assert not reply.done()
    assert reply.result(30)[0] == first
    assert len(reply.text.splitlines()) == 60


def test_scores_are_the_policys_log_probs_of_the_lines(recommender, run):
    (reply,) = recommender.ask([Request(TALK, 8, where="year>1960", seen=["Alien"])])
    policy = load_policy(run / "checkpoints" / "last" / "policy", ModelConfig(name="it"))
    job = reply._plan.job
    prompt, ids = torch.tensor([list(job.prompt)]), torch.tensor([reply._plan.reader.ids])
    logits = policy.lm(torch.cat([prompt, ids], 1)).logits[0, prompt.shape[1] - 1 : -1].detach()
    constraint = recommender.session.planner.constraint
    for row, allowed in zip(logits, constraint.replay(job.opening, ids[0].tolist()), strict=True):
        kept = torch.from_numpy(allowed.tokens()).long()
        row.copy_(torch.full_like(row, -torch.inf).scatter(0, kept, row[kept]))
    logprobs = logits.log_softmax(-1).gather(1, ids[0][:, None])[:, 0]
    ranks = segment_ranks(ids, torch.ones_like(ids), policy.newline, policy.blank, policy.opens)[0]
    expected = [float(logprobs[ranks == rank].sum()) for rank in range(8)]
    assert [one.score for one in reply.result()] == pytest.approx(expected, abs=1e-4)
    assert ranks.max() == 7


def test_scores_of_a_free_list_are_those_of_forward(run):
    with Recommender.load(run, engine="hf", constraint="none") as free:
        (reply,) = free.ask([Request(ASKED, 3)])
        policy = free.session.planner.policy
        ids = torch.tensor([reply._plan.reader.ids])
        prompt = torch.tensor([list(reply._plan.job.prompt)])
        batch = TokenBatch(prompt, torch.ones_like(prompt), torch.tensor([0]), ids, torch.ones_like(ids))
        with policy.inference():
            logprobs = policy(batch)[0][0]
        ranks = segment_ranks(ids, torch.ones_like(ids), policy.newline, policy.blank, policy.opens)[0]
        lines = [line.strip() for line in reply.text.splitlines()]
        assert reply.result()
        for one in reply.result():
            expected = float(logprobs[ranks == lines.index(str(one))].sum())
            assert one.score == pytest.approx(expected, abs=1e-4)


def test_sampled_lists_follow_their_seed(recommender):
    drawn = [texts(recommender.recommend(ASKED, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    batch = recommender.recommend([ASKED, ASKED], temperature=1.0, seed=1)
    assert texts(batch[0]) == texts(batch[1]) == drawn[0]


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        ([{"role": "wizard", "content": "x"}], {}, '"role" must be'),
        (" ", {}, "no message"),
        ([], {}, "is empty"),
        (5, {}, "must be a text or a list"),
        (ASKED, {"n": 0}, "n=0 must be"),
        (ASKED, {"n": True}, "n=True must be"),
        (ASKED, {"seen": "Heat"}, "seen must be a list of titles"),
        (ASKED, {"temperature": -1}, "temperature=-1"),
        (ASKED, {"top_p": 0}, "top_p=0"),
        (ASKED, {"seed": 2**62}, "below 2**62"),
        (ASKED, {"where": "year>"}, "character 6: expected a value"),
        (ASKED, {"where": "mood=dark"}, "it has: title, year, genre, keyword, person"),
    ],
)
def test_requests_that_cannot_be_answered(recommender, messages, options, said):
    with pytest.raises(UserError) as raised:
        recommender.recommend(messages, **options)
    assert said in str(raised.value)


def test_messages_of_the_system_are_left_out_and_told(recommender):
    messages = [{"role": "system", "content": "Be rude."}, *TALK]
    (reply,) = recommender.ask([Request(messages)])
    assert texts(reply.result()) == texts(recommender.recommend(TALK))
    assert "system were left out" in reply.notes[0]


def test_a_free_list_drops_what_is_seen_and_flags_what_is_not_in_the_catalog(run, catalog):
    with Recommender.load(run, engine="hf", constraint="none") as free:
        reader = free.session.planner.plan(Request(ASKED, seen=["Alien"], exclude=["Heat (1995)"])).reader
        text = "Alien (1979)\nHeat (1995)\nMad Max (1979)\nMAD MAX (1979)\nNo Such Film (2001)\nwhatever"
        ids = free.session.planner.policy.tokenizer(text)["input_ids"]
        found = list(reader.add(ids, [-1.0] * len(ids), "stop"))
        assert texts(found) == ["Mad Max (1979)", "No Such Film (2001)", "whatever"]
        assert [one.item is not None for one in found] == [True, False, False]
        assert reader.dropped == 3
        within = free.session.planner.plan(Request(ASKED, where="year=1979")).reader
        assert texts(within.add(ids, [-1.0] * len(ids), "length")) == ["Alien (1979)", "Mad Max (1979)"]
        assert within.cut


# Sessions


def test_many_threads_get_what_they_asked_for(recommender):
    asked = [Request(f"{ASKED} {k}", n=2 + k % 3, seed=k, temperature=k % 2) for k in range(24)]
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda request: recommender.session.submit(request).result(60), asked))
    assert [len(found) for found in replies] == [request.n for request in asked]
    alone = [recommender.ask([request])[0].result() for request in asked[:4]]
    assert [texts(found) for found in alone] == [texts(found) for found in replies[:4]]
    assert recommender.session.unanswered == 0


def test_a_cancelled_list_ends_and_the_others_go_on(recommender):
    stays, goes = (recommender.session.submit(Request(ASKED, n)) for n in (40, 200))
    next(iter(goes))
    goes.cancel()
    with pytest.raises(CancelledError):
        goes.result(30)
    assert len(stays.result(60)) == 40
    stream = recommender.stream(ASKED, n=200)
    next(stream)
    stream.close()
    assert recommender.session.unanswered == 0
    assert len(goes._plan.reader.ids) < 200 * 4


def test_replies_can_be_awaited(recommender):
    async def follow() -> list[list[str]]:
        replies = [recommender.session.submit(Request(ASKED, n)) for n in (3, 4)]
        return [[str(one) async for one in reply] for reply in replies]

    assert [len(found) for found in asyncio.run(follow())] == [3, 4]


def test_a_full_session_refuses_and_a_closed_one_too(run):
    recommender = Recommender.load(run, engine="hf", limit=2)
    replies = [recommender.session.submit(Request(ASKED, 40)) for _ in range(2)]
    with pytest.raises(Busy):
        recommender.session.submit(Request(ASKED))
    with pytest.raises(TimeoutError):
        replies[0].result(0.001)
    closing = threading.Thread(target=recommender.session.close)  # what is under way is answered
    closing.start()
    assert [len(reply.result(60)) for reply in replies] == [40, 40]
    closing.join(60)
    with pytest.raises(Closed):
        recommender.recommend(ASKED)
    recommender.close()


def test_more_requests_than_the_limit_are_answered_in_turn(run):
    with Recommender.load(run, engine="hf", limit=2) as recommender:
        assert [len(found) for found in recommender.recommend([ASKED] * 7, n=2)] == [2] * 7


def test_an_engine_that_fails_tells_everyone_and_goes_on(recommender):
    class Failing(HFStepper):
        """Fails in its first step."""

        failed = False

        def step(self) -> list[Written]:
            if not self.failed:
                self.failed = True
                raise RuntimeError("out of memory")
            return super().step()

    session = recommender.session
    with Session(session.planner, Failing(session.planner.policy, session.planner.constraint)) as failing:
        with pytest.raises(RuntimeError, match="out of memory"):
            failing.submit(Request(ASKED)).result(30)
        assert len(failing.submit(Request(ASKED)).result(30)) == 5


# Policies from elsewhere


@pytest.mark.parametrize("place", ["", "checkpoints/last", "checkpoints/last/policy"])
def test_a_run_that_was_moved_needs_no_dataset(run, tmp_path, place, recommender):
    shutil.copytree(run, tmp_path / "moved", symlinks=True)
    with Recommender.load(tmp_path / "moved" / place, engine="hf") as moved:
        assert texts(moved.recommend(ASKED)) == texts(recommender.recommend(ASKED))


def test_a_published_folder_holds_its_package(run, tmp_path, recommender):
    folder = plain_policy(run, tmp_path / "published")
    for file in (SETTINGS, CATALOG):
        shutil.copy(run / "package" / file, folder)
    with Recommender.load(folder, engine="hf") as published:
        assert texts(published.recommend(ASKED)) == texts(recommender.recommend(ASKED))


def test_a_plain_folder_needs_a_catalog(run, tmp_path):
    folder = plain_policy(run, tmp_path / "plain")
    with pytest.raises(UserError, match=r"has no catalog beside it.*catalog=FILE"):
        Recommender.load(folder)
    file = tmp_path / "films.csv"
    file.write_text("title,year,genres\nHeat,1995,crime|drama\nAlien,1979,horror\nBrazil,1985,comedy\n")
    with Recommender.load(folder, engine="hf", catalog=file) as given:
        assert sorted(texts(given.recommend(ASKED, n=3))) == ["Alien (1979)", "Brazil (1985)", "Heat (1995)"]
        assert texts(given.recommend(ASKED, where="genre=drama")) == ["Heat (1995)"]
    own = Catalog([Item("Heat", 1995), Item("Solaris")])
    with Recommender.load(folder, engine="hf", catalog=own) as given:
        assert sorted(texts(given.recommend(ASKED, n=9))) == ["Heat (1995)", "Solaris"]
    with Recommender.load(folder, engine="hf", constraint="none") as free:
        assert all(one.item is None for one in free.recommend(ASKED, n=3))
        with pytest.raises(UserError, match="where needs a catalog"):
            free.recommend(ASKED, where="year>1990")


def test_a_run_without_a_package_is_asked_as_it_was_trained(run, tmp_path, catalog, recommender):
    shutil.copytree(run, tmp_path / "old", symlinks=True)
    shutil.rmtree(tmp_path / "old" / "package")
    with pytest.raises(UserError, match="has no catalog"):
        Recommender.load(tmp_path / "old")
    with Recommender.load(tmp_path / "old", engine="hf", catalog=catalog) as old:
        assert texts(old.recommend(ASKED)) == texts(recommender.recommend(ASKED))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (SETTINGS, "{", "not the settings of a policy"),
        (SETTINGS, '{"format": 2}', "has format 2"),
        (SETTINGS, '{"format": 1, "n": 0}', "not the settings"),
        (SETTINGS, '{"format": 1, "instruction": "{who}"}', "not the settings"),
        (SETTINGS, '{"format": 1, "match": {"_target_": "os.system"}}', "your own class: give it as match"),
        (CATALOG, '{"title": "Heat", "year": 1995}\n{"year": 3}\n', "line 2: not an item"),
        (CATALOG, "[]\n", "line 1: not an item"),
    ],
)
def test_packages_that_cannot_be_read(run, tmp_path, file, text, said):
    folder = plain_policy(run, tmp_path / "policy")
    for name in (SETTINGS, CATALOG):
        shutil.copy(run / "package" / name, folder)
    (folder / file).write_text(text)
    with pytest.raises(UserError) as raised:
        Recommender.load(folder)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("nowhere", {}, "no such folder"),
        ("./no/where", {}, "no such folder"),
        ("org/none", {}, "cannot be read from the Hub"),
        ("RUN/eval", {}, "holds no policy"),
        ("RUN", {"engine": "tgi"}, "choose auto, hf or vllm"),
        ("RUN", {"constraint": "some"}, "choose catalog or none"),
        ("RUN", {"catalog": "nowhere.csv"}, "does not exist"),
    ],
)
def test_policies_that_cannot_be_loaded(run, path, options, said):
    with pytest.raises(UserError) as raised:
        Recommender.load(path.replace("RUN", str(run)), **options)
    assert said in str(raised.value)


def test_importing_the_package_is_light():
    import subprocess

    code = "import sys, convrec_r1; assert 'torch' not in sys.modules and 'omegaconf' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env=PATHS).returncode == 0
    assert convrec_r1.Recommender is Recommender


# Commands


def command(*arguments: str, cwd: Path, said: str | None = None):
    return run_command(*arguments, "trainer=cpu", cwd=cwd, said=said, HF_HUB_OFFLINE="1")


def test_a_message_is_answered_on_the_terminal(run, tmp_path, recommender):
    message = "I loved Alien's mood, and (honestly) \"Brazil\" = x: what's next?"
    done = command(
        "task=recommend", f"checkpoint={run}", f"message={message}", "n=4", "where=not genre=comedy and (year>1950)",
        "seen=[Alien,Nothing of it]", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = recommender.recommend(message, 4, where="not genre=comedy and year>1950", seen=["Alien"])
    for one in expected:
        assert str(one) in done.stdout
        assert f"{one.score:.2f}" in done.stdout
    assert "Not in the catalog: Nothing of it." in done.stdout
    assert list(tmp_path.iterdir()) == []  # no run folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("task=recommend message=x", "needs checkpoint=RUN"),
        ("task=recommend checkpoint=RUN", "message="),
        ("task=recommend checkpoint=RUN message=x input=y output=z", "one of both"),
        ("task=recommend checkpoint=RUN input=y", "belong together"),
        ("task=recommend checkpoint=RUN message=x where=year>", "expected a value"),
        ("task=recommend checkpoint=RUN message=x serve.top_p=0", "serve.top_p"),
        ("task=recommend checkpoint=RUN message=x rollout=vllm rollout.sleep=true", "rollout.sleep"),
        ("task=recommend checkpoint=RUN message=${oc.env:HOME}", "begins a reference"),
        ("task=recommend checkpoint=RUN input=missing.jsonl output=o", "does not exist"),
        ("task=chat", "needs checkpoint=RUN"),
        ("task=chat checkpoint=nowhere", "no such folder"),
    ],
)
def test_commands_that_are_refused(run, arguments, said):
    def carry_out() -> None:
        cfg = make_config(*arguments.replace("RUN", str(run)).split(), "trainer=cpu")
        check(cfg)
        TASKS[cfg.task.name](cfg)

    with pytest.raises(UserError) as raised:
        carry_out()
    assert said in str(raised.value)


def test_a_refused_command_leaves_nothing_behind(run, tmp_path):
    done = command("task=recommend", f"checkpoint={run}", "message=x", "where=mood=dark", cwd=tmp_path)
    assert_user_error(done, "it has: title, year, genre, keyword, person")
    assert list(tmp_path.iterdir()) == []


def ask_file(run: Path, cwd: Path, *options: str):
    return command("task=recommend", f"checkpoint={run}", "input=in.jsonl", "output=out/a.jsonl", *options, cwd=cwd)


def test_a_file_is_answered_and_resumed(run, tmp_path, recommender, monkeypatch):
    rows = [
        {"id": "a", "message": ASKED, "n": 3, "exclude": [["Alien", 1979], "Brazil (1985)"]},
        {"messages": TALK, "ground_truth": [["Heat", 1995]]},
        {"message": "Scary films", "where": "genre=horror", "n": 200},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = ask_file(run, tmp_path, "seen=[Mad Max]")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out" / "a.jsonl"
    answers = read_jsonl(output)
    assert [row["id"] for row in answers] == ["a", "line-2", "line-3"]
    found = recommender.recommend(ASKED, n=3, exclude=["Alien (1979)", "Brazil (1985)"], seen=["Mad Max"])
    assert [row["title"] for row in answers[0]["recommendations"]] == [one.title for one in found]
    assert len(answers[1]["recommendations"]) == 5
    assert "200: no more items" in answers[2]["notes"][0]
    whole = output.read_bytes()
    monkeypatch.chdir(tmp_path)
    for cut in (1, len(whole) // 2, len(whole) - 1, len(whole)):
        output.write_bytes(whole[:cut])
        task = ("task=recommend", f"checkpoint={run}", "input=in.jsonl", "output=out/a.jsonl", "seen=[Mad Max]")
        recommend(make_config(*task, "trainer=cpu"))
        assert output.read_bytes().startswith(whole[: whole.rfind(b"\n", 0, cut) + 1])
        assert [row["recommendations"] for row in read_jsonl(output)] == [
            [{**item, "score": pytest.approx(item["score"], abs=1e-3)} for item in row["recommendations"]]
            for row in answers
        ]
    output.write_bytes(whole)
    assert_user_error(ask_file(run, tmp_path, "seen=[Alien]"), "a.jsonl, line 1: not an answer to a of this input")
    assert output.read_bytes() == whole


def test_lines_that_are_no_requests_are_named(run, tmp_path):
    lines = ['{"message": "x"}', '{"n": 3}', '{"message": "x", "n": -1}', "nonsense",
             '{"message": "x", "where": "year"}',
             '{"message": "x", "id": "line-1"}', '{"messages": [{"role": "user"}]}', "[]",
             '{"message": "x", "seen": "Heat"}']  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    done = ask_file(run, tmp_path)
    assert_user_error(done, *(f"in.jsonl, line {k}: " for k in range(2, 10)), "one of both", "used before", "n=-1")
    assert not (tmp_path / "out").exists()


def test_a_conversation_on_the_terminal(run, tmp_path, recommender):
    said = [
        "Something funny, please", "/more", "/seen Alien; Nothing of it", "/where year<", "/where year=1979", "And scary",
        "/more",
        "/why", "/n 0", "/n 2", "/where", "A western\x1b[2J", "/save talk.json", "/save talk.json", "/what", "/help",
        "/quit", "not read",
    ]  # fmt: skip
    done = command("task=chat", f"checkpoint={run}", cwd=tmp_path, said="\n".join(said))
    assert done.returncode == 0, done.stderr
    talk = read_json(tmp_path / "talk.json")
    first = recommender.recommend("Something funny, please")
    shown = [row["title"] for row in talk["lists"][0]]
    assert shown == [one.title for one in first]
    more = recommender.recommend("Something funny, please", exclude=[one.item for one in first])
    assert [row["title"] for row in talk["lists"][1]] == [one.title for one in more]
    assert talk["messages"][1]["content"] == ", ".join(texts([*first, *more]))
    assert [row["title"] for row in talk["lists"][2]] == ["Mad Max"]
    assert [m["role"] for m in talk["messages"]] == ["user", "assistant"] * 3
    assert len(talk["lists"][3]) == 2
    assert talk["seen"] == ["Alien"]
    for text in (f"  1. {first[0]}", f"  6. {more[0]}", "Not in the catalog: Nothing of it", "expected a value",
                 "2 items meet",
                 "1 of 5: no more items", "/n takes a number", "exists: choose another",
                 "/what is no command", "/seen TITLE"):  # fmt: skip
        assert text in done.stdout, done.stdout
    assert "\x1b" not in done.stdout
    assert "not read" not in done.stdout


def test_a_conversation_ends_with_its_input_and_with_ctrl_c(run, tmp_path):
    assert command("task=chat", f"checkpoint={run}", cwd=tmp_path, said="").returncode == 0
    talk = start_command(
        "task=chat", f"checkpoint={run}", "trainer=cpu", cwd=tmp_path, said=f"{ASKED}\n/n 240\n" + "x\n" * 500
    )
    talk.until(lambda: "  1. " in talk.stdout)
    talk.send_signal(2)
    assert talk.wait(60) == 0
    assert "Traceback" not in talk.said


def test_lines_of_a_free_chat_are_marked(run):
    with Recommender.load(run, engine="hf", constraint="none") as free:
        out = io.StringIO()
        Chat(free, Console(file=out, width=80), Request("", n=2)).run(
            iter(["/more", "/why", "x" * 20, "/new", "/quit"])
        )
    assert "There is no list yet" in out.getvalue()
    assert "A new conversation" in out.getvalue()


# The documentation


PAGE = ROOT / "docs" / "recommend.md"
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(run, tmp_path, monkeypatch) -> Path:
    """A folder with what the examples name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(run)
    plain_policy(run, tmp_path / "DIR")
    (tmp_path / "FILE.csv").write_text("title,year\nHeat,1995\nAlien,1979\n")
    (tmp_path / "asked.jsonl").write_text('{"message": "Something funny"}\n')
    return tmp_path


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_the_examples_in_python_work(page, home, capsys):
    blocks = CODE.findall(page.read_text())
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert len(re.findall(r"\(\d{4}\)", capsys.readouterr().out)) >= 5


@pytest.mark.parametrize("arguments", commands(PAGE), ids=" ".join)
def test_the_commands_of_the_page_work(arguments, home):
    given = [argument.replace("catalog=FILE", "catalog=FILE.csv") for argument in arguments]
    done = command(*given, cwd=home, said="Something funny\n")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(\d{4}\)", done.stdout) or (home / "answers.jsonl").exists()
