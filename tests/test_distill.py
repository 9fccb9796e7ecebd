"""task=distill as people run it: one command, killed and run again, over HTTP, in part; and SFT on what it makes."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI
from support import ROOT, SMOKE, assert_user_error, make_config, run_command, start_command

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, read_jsonl, write_jsonl
from convrec_r1.config.checks import check
from convrec_r1.data import movieland
from convrec_r1.data.load import load_data
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.embedders.tfidf import TfidfEmbedder
from convrec_r1.distill.export import read_demonstrations, write_dataset
from convrec_r1.distill.pipeline import Setup, asked_about, conversations_only, run
from convrec_r1.distill.teachers.base import make_teacher
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.lists import Item
from convrec_r1.policy.prompts import dialogue

pytestmark = pytest.mark.long

SMALL = ("data.train_size=24", "data.validation_size=10", "data.test_size=4", "n=5", "distill.reflect.candidates=10",
         "distill.adjust.folds=2", "logger=none")  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A dataset in files, with nothing known of its items."""
    folder = tmp_path_factory.mktemp("files")
    write_dataset(movieland.load(n_items=5, sizes={"train": 24, "validation": 10, "test": 4}), folder)
    return folder


def over_http(files: Path, server: FakeOpenAI, *overrides: str) -> tuple[str, ...]:
    return (
        "task=distill", "data=jsonl", f"data.path={files}", "data.domain=movies", "data.instruction='Name {n} movies.'",
        "teacher=openai", "teacher.model=any", f"teacher.base_url={server.url}", *SMALL, *overrides,
    )  # fmt: skip


def the_card(cwd: Path, outputs: str = "outputs") -> dict:
    (file,) = cwd.glob(f"{outputs}/distilled/*/card.json")
    return read_json(file)


def asked(card: dict, name: str = "asked") -> int:
    return sum(kind[name] for kind in card["asked"]["kinds"].values())


def setup_of(cfg, **changes) -> Setup:
    return Setup(
        **{"distill": cfg.distill, "embedder": cfg.embedder, "data": cfg.data, "match": cfg.match, "n": cfg.n} | changes
    )


def asked_of(teacher: TeacherConfig, cfg, data, tmp_path, **changes):
    made = make_teacher(teacher, seed=cfg.data.seed, sizes={"train": 24, "validation": 10})
    with AnswerCache(tmp_path / "cache") as cache, Interview(made, cache, teacher) as interview:
        return run(setup_of(cfg, **changes), data, interview, tmp_path)


@pytest.mark.processes
def test_the_default_pipeline_makes_demonstrations_and_their_card(tmp_path):
    done = run_command("task=distill", *SMALL, "distill.scores=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in ("Teacher, as it said", "+ Adjust", "What users wanted", "Ratings: 340 asked for"):
        assert said in done.stdout
    (made,) = tmp_path.glob("outputs/distilled/*[!k]")
    card = read_json(made / "card.json")
    assert list(card["held_out"]) == ["as_said", "matched", "remap", "reflect", "adjust"]
    assert card["conversations"] == {"train": 24, "held_out": 10}
    data = movieland.load(n_items=5, sizes={"train": 24, "validation": 10, "test": 4})
    said = {conversation.messages for split in ("train", "validation") for conversation in data[split]}
    assert card["asked"]["kinds"]["recommend"]["asked"] == len(said), "who says the same is asked about once"
    assert all(
        card["held_out"][stage]["metrics"]["catalog/valid"] == 1 for stage in ("matched", "remap", "reflect", "adjust")
    )
    assert sum(card["matches"].values()) == pytest.approx(1)
    assert not (made / "scratch").exists()
    assert (made / "card.png").stat().st_size > 10_000
    # Its lists are of the catalog, none that was seen, in train and validation; the test split has none.
    catalog = data.catalog
    found = read_demonstrations(made / "dataset")
    assert len(found) == 34
    for conversation in found.values():
        assert len(conversation.demonstration) == 5
        assert all(item in catalog for item in conversation.demonstration)
        assert not {item.title for item in conversation.demonstration} & set(conversation.seen)
    assert not any(row.get("demonstration") for row in read_jsonl(made / "dataset" / "test.jsonl"))
    # What the scores are made of adds up.
    for row in read_jsonl(made / "scores.jsonl"):
        assert [Item(*i) for i in found[row["id"]].demonstration] == [
            Item(e["item"].rpartition(" (")[0], int(e["item"][-5:-1])) for e in row["list"]
        ]
        for e in row["list"]:
            parts = e["similarity"] + e["exact"] + e["context"] + 0.5 * e["rating"]
            assert e["score"] == pytest.approx(parts, abs=1e-4)
        finals = [e["final"] for e in row["list"]]
        assert finals == sorted(finals, reverse=True)
    # The run's folder leads to all of it; the same command finds it again.
    (folder,) = tmp_path.glob("outputs/main/distill-*")
    assert (folder / "dataset" / "train.jsonl").exists()
    assert "figures/card.png" in (folder / "report.md").read_text()
    again = run_command("task=distill", *SMALL, "distill.scores=true", cwd=tmp_path)
    assert "This run is complete" in again.stdout
    fresh = run_command("task=distill", *SMALL, "distill.scores=true", "fresh=true", cwd=tmp_path)
    assert "Demonstrations: using" in fresh.stdout.replace("\n", " ")


@pytest.mark.processes
def test_over_http_everything_is_asked_once_and_no_key_stays(tmp_path, files):
    """Metadata comes from the teacher here; a tenth of the requests fail once."""

    def plan(text: str, times: int) -> str | None:
        return ["429", "500", "truncated", "reset"][len(text) % 4] if times == 0 and len(text) % 10 == 0 else None

    with FakeOpenAI(plan) as server:
        command = over_http(files, server, "teacher.price_in=1", "teacher.price_out=2")
        first = run_command(*command, "distill.dry_run=true", cwd=tmp_path)
        assert first.returncode == 0, first.stderr
        assert not server.asked, "a dry run asks nothing"
        assert "recommend" in first.stdout
        assert "$0." in first.stdout
        done = run_command(*command, cwd=tmp_path, OPENAI_API_KEY="sk-not-to-be-seen")
        assert done.returncode == 0, done.stderr
        assert server.keys == {"Bearer sk-not-to-be-seen"}
        assert set(server.delivered.values()) == {1}
        card = the_card(tmp_path)
        assert asked(card) == len(server.delivered)
        assert sum(card["asked"]["retries"].values()) == sum(server.faults.values()) > 0
        assert card["metadata"]["teacher"] > 200
        assert card["metadata"]["file"] == 0
        sums = {name: asked(card, name) for name in ("prompt_tokens", "completion_tokens", "cost")}
        assert sums["cost"] == pytest.approx((sums["prompt_tokens"] + 2 * sums["completion_tokens"]) / 1e6)
        assert card["reflect"]["unread"] == 0
        for file in tmp_path.rglob("*"):
            if file.is_file():
                assert b"sk-not-to-be-seen" not in file.read_bytes(), file
        # Another ablation asks nothing that was answered, though it judges other candidates.
        before = server.delivered.copy()
        done = run_command(*command, "distill=without_reflect", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert server.delivered == before


@pytest.mark.processes
def test_killed_at_any_point_and_run_again_nothing_is_paid_for_twice(tmp_path, files):
    """Killed with -9 after so many answers, again and again, until it ends by itself."""
    with FakeOpenAI(pace=0.02) as server:
        command = over_http(files, server, "teacher.concurrency=2", "distill.describe_batch=10")
        kills = 0
        for stop_at in (10, 45, 75):
            process = start_command(*command, cwd=tmp_path)
            while process.poll() is None and sum(server.delivered.values()) < stop_at:
                time.sleep(0.002)
            kills += process.poll() is None
            process.end()
        assert kills >= 2
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        repeated = sum(times - 1 for times in server.delivered.values())
        assert repeated <= 2 * kills, "asked again: only what was under way when it was killed"
        card = the_card(tmp_path)
        assert asked(card) + asked(card, "from_cache") == len(server.delivered)
        assert asked(card, "from_cache") >= 70

    # The result is that of a run that nobody killed.
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    with FakeOpenAI() as server:
        other = over_http(files, server, "distill.describe_batch=10")
        assert run_command(*other, cwd=quiet).returncode == 0
    (made,) = tmp_path.glob("outputs/distilled/*/dataset")
    (wanted,) = quiet.glob("outputs/distilled/*/dataset")
    assert (made / "train.jsonl").read_bytes() == (wanted / "train.jsonl").read_bytes()


@pytest.mark.processes
def test_two_runs_at_once_make_it_once(tmp_path, files):
    with FakeOpenAI(pace=0.02) as server:
        command = over_http(files, server)
        runs = [start_command(*command, f"study=s{number}", cwd=tmp_path) for number in range(2)]
        for each in runs:
            assert each.wait() == 0, each.said
        assert set(server.delivered.values()) == {1}
    assert len(list(tmp_path.glob("outputs/s?/distill-*/summary.json"))) == 2


@pytest.mark.processes
def test_sft_learns_from_what_was_distilled_in_one_command_and_from_its_folder(tmp_path):
    common = (*SMOKE, "algo=sft", "n=5", "data.train_size=24", "data.validation_size=10", "data.test_size=4",
              "distill.reflect.candidates=10", "distill.adjust.folds=2")  # fmt: skip
    done = run_command(*common, "data.demonstrations=distilled", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("outputs/distilled/*[!k]")
    assert "Demonstrations: 34 of 34" in done.stdout.replace("\n", " ").replace("  ", " ")
    again = run_command(*common, f"data.demonstrations={made}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr

    def warm_starts() -> int:
        return len(list(tmp_path.glob("outputs/warm_starts/*/warm_start.json")))

    assert warm_starts() == 1, "the folder's demonstrations are the same, and so is what SFT makes of them"
    lists = [file.read_bytes() for file in tmp_path.glob("outputs/*/sft-*/eval/test.jsonl")]
    assert len(lists) == 2
    assert lists[0] == lists[1]
    other = run_command(*common, cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert warm_starts() == 2, "the published demonstrations are others"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task=distill", "teacher=openai"], ["teacher=openai needs teacher.model"]),
        (["task=distill", "data=redial", "data.path=."], ["teacher=simulated answers about movieland only"]),
        (["task=distill", "teacher=openai", "teacher.model=m", "teacher.base_url=ftp://x"],
         ["teacher.base_url has 'ftp://x': give it as http"]),
        (["task=distill", "distill.reflect.candidates=0", "teacher.concurrency=0"],
         ["distill.reflect.candidates=0: must be at least 1", "teacher.concurrency=0: must be at least 1"]),
        (["task=distill", "distill.metadata=nowhere.csv"], ["distill.metadata=nowhere.csv: there is no such file"]),
        (["distill.dry_run=true"], ["use it with task=distill"]),
        (["data.demonstrations=nowhere"], ["data.demonstrations=nowhere: choose published, neighbours, distilled"]),
        (["task=distill", "distill.adjust.strengths=[]"], ["distill.adjust.strengths=[]"]),
        (["task=distill", "teacher=openai", "teacher.model=m", "teacher.base_url=http://u:pw@h/v1"], ["password"]),
    ],
)  # fmt: skip
def test_misuse(overrides, says):
    with pytest.raises(UserError) as error:
        check(make_config(*overrides))
    for said in says:
        assert said in str(error.value)


@pytest.mark.processes
def test_demonstrations_of_other_data_are_refused(tmp_path):
    assert run_command("task=distill", *SMALL, "distill=matched", cwd=tmp_path).returncode == 0
    (made,) = tmp_path.glob("outputs/distilled/*[!k]")
    done = run_command(*SMOKE, "algo=sft", f"data.demonstrations={made}", "data.seed=7", cwd=tmp_path)
    assert_user_error(done, "was made for another conversation")


def published(files: Path, folder: Path) -> Path:
    """The dataset of `files` with published prompts: one message that holds the instruction and the conversation."""
    said = "Pretend you are a movie recommender system. Reply with 5 movies. Here is the conversation: "
    for split in ("train", "validation", "test"):
        rows = read_jsonl(files / f"{split}.jsonl")
        for row in rows:
            turns = (f"{'USER' if m['role'] == 'user' else 'SYSTEM'}: {m['content']}" for m in row["messages"])
            row |= {"messages": [{"role": "user", "content": said + " ".join(turns)}], "has_instruction": True}
        write_jsonl(folder / f"{split}.jsonl", rows)
    shutil.copy(files / "catalog.csv", folder)
    return folder


def test_remap_and_the_judge_get_the_conversation_and_not_the_instruction(tmp_path, files, monkeypatch):
    """The teacher is asked with the published prompt as it is; then nothing of its instruction is left."""
    embedded = []

    def embed(self, items, conversations):
        embedded.extend(conversations)
        return original(self, items, conversations)

    original = TfidfEmbedder.embed
    monkeypatch.setattr(TfidfEmbedder, "embed", embed)
    (tmp_path / "data").mkdir()
    with FakeOpenAI() as server:
        cfg = make_config(*over_http(published(files, tmp_path / "data"), server), "data.prompt=published")
        data = load_data(cfg.data, cfg.n, need=["train"])
        assert all(c.has_instruction for c in data["train"])
        asked_of(cfg.teacher, cfg, data, tmp_path)
        assert sum(question.startswith("Pretend you are") for question in server.asked) > 10
        judged = [question for question in server.asked if "Score -2" in question]
    heard = [dialogue(c) for c in conversations_only(setup_of(cfg).adapter, asked_about(cfg.distill, data))]
    plain = load_data(make_config("data=jsonl", f"data.path={files}", *SMALL).data, cfg.n, need=["train"])
    turns = [[(m.role, m.content) for m in c.messages] for c in asked_about(cfg.distill, plain)]
    assert embedded == heard == [dialogue(c) for c in asked_about(cfg.distill, plain)], turns[:1]
    assert len(judged) > 10
    assert not any("Pretend" in text or "Here is the conversation" in text for text in [*judged, *embedded])


def test_a_prompt_whose_instruction_cannot_be_told_is_counted(caplog, files):
    cfg = make_config("data=jsonl", f"data.path={files}")
    whole = Conversation("c", "c", (Message("user", "Name 5 movies for me, please."),), (), has_instruction=True)
    with caplog.at_level("WARNING", "convrec_r1"):
        (heard,) = conversations_only(setup_of(cfg).adapter, [whole])
    assert heard.messages == whole.messages
    assert "1 published prompts are used whole as context" in caplog.text


@pytest.mark.slow(reason="starts three servers of vLLM's, each of which takes a minute")
def test_a_teacher_that_vllm_serves_here(tmp_path, files):
    """A real server with a small model that knows nothing: asked, counted, judged unreadable, and gone in the end."""
    from support import tiny_policy

    from convrec_r1.policy.prompts import PLAIN_TEMPLATE
    from convrec_r1.rollout.config import vllm_version

    if vllm_version() is None:
        pytest.skip("vLLM is not installed (make setup-vllm)")
    policy = tiny_policy()
    policy.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + PLAIN_TEMPLATE
    policy.causal_lm.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    command = (
        "task=distill", "data=jsonl", f"data.path={files}", "teacher=vllm", f"teacher.model={tmp_path / 'model'}",
        "teacher.dtype=float32", *SMALL, "data.train_size=3", "data.validation_size=2", "distill.describe=false",
        "distill.reflect.candidates=4", "distill.reflect.repairs=0", "teacher.most_refused=1",
        "data.domain=movies", "data.instruction='Name {n} movies.'", "distill.adjust.strength=1",
    )  # fmt: skip
    done = run_command(*command, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    card = the_card(tmp_path)
    for kind in ("recommend", "judge"):
        assert card["asked"]["kinds"][kind]["asked"] + card["asked"]["kinds"][kind]["refused"] == 5
    assert card["asked"]["kinds"]["recommend"]["completion_tokens"] > 5
    assert card["reflect"]["candidates"] == 20
    assert card["asked"]["retries"] == {}
    workers = "cluster=ray", "teacher.workers=2", "outputs=on_ray"
    full = run_command(*command, *workers, "cluster.cpus=2", cwd=tmp_path)
    assert full.returncode == 2
    assert "block of Stage 1" in full.stderr
    on_ray = run_command(*command, *workers, "cluster.cpus=3", cwd=tmp_path, timeout=600)
    assert on_ray.returncode == 0, on_ray.stdout + on_ray.stderr
    of_two = the_card(tmp_path, "on_ray")
    assert (of_two["asked"], of_two["held_out"]) == (card["asked"], card["held_out"])
    ours = subprocess.run(["pgrep", "-f", str(tmp_path / "model")], capture_output=True, text=True).stdout.split()
    assert not [pid for pid in ours if int(pid) != os.getpid()], "the server outlived the run"
    assert ROOT.exists()
