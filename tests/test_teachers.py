"""Asking a teacher over HTTP that fails in every way: nothing is lost, nothing is paid for twice, all of it is counted."""

import json
import re
import sqlite3
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from fake_openai import FakeOpenAI, completion
from support import make_config

from convrec_r1.base.errors import UserError
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.distill.answers import descriptions, ratings
from convrec_r1.distill.questions import describe, judge
from convrec_r1.distill.teachers import interview as interviews
from convrec_r1.distill.teachers.base import Answer, Chat, Question
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.cost import Estimate, estimate, in_words, price
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.distill.teachers.openai import OpenAITeacher, seconds_of
from convrec_r1.lists import Item

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Waits between attempts, a tenth as long."""
    monkeypatch.setattr(interviews, "FIRST_WAIT", 0.05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def question(text: str, kind="recommend", limit: int = 50) -> Question:
    return Question(kind, (Chat("user", text),), limit, 10)


def config(server: FakeOpenAI, *overrides: str):
    base = ("teacher=openai", "teacher.model=any", f"teacher.base_url={server.url}", "teacher.timeout=1")
    return make_config(*base, *overrides).teacher


class Asked:
    """Interviews with a server, their answers kept in one folder."""

    def __init__(self, server, folder, *overrides: str) -> None:
        self.cfg, self.folder = config(server, *overrides), folder

    def __call__(self, questions) -> tuple[list[Answer], dict]:
        with AnswerCache(self.folder) as cache, Interview(OpenAITeacher(self.cfg), cache, self.cfg) as interview:
            self.counts = interview.counts
            return interview.ask(questions, "Questions"), interview.counts.as_dict()


def texts(count: int) -> list[Question]:
    return [question(f"question {number}") for number in range(count)]


FAULTS = {
    "429": "rate limit",
    "500": "status 500",
    "503": "status 503",
    "slow": "timeout or broken connection",
    "truncated": "broken answer",
    "hung up": "timeout or broken connection",
    "reset": "timeout or broken connection",
    "no choices": "empty answer",
    "page": "broken answer",
}


def test_after_every_kind_of_fault_nothing_is_lost_and_nothing_is_asked_twice(tmp_path):
    """Every question meets one of the nine faults, a third of them another one after it."""
    names = list(FAULTS)

    def plan(text: str, times: int) -> str | None:
        number = int(text.split()[-1])
        if times == 0:
            return names[number % 9]
        return names[(number + 4) % 9] if times == 1 and number % 3 == 0 else None

    questions = texts(54)
    with FakeOpenAI(plan) as server:
        ask = Asked(server, tmp_path, "teacher.concurrency=8")
        answers, counts = ask(questions)
        for asked, answer in zip(questions, answers, strict=True):
            wanted = completion(asked.messages[0].content)
            assert answer.text == wanted["choices"][0]["message"]["content"]
            assert answer.prompt_tokens == wanted["usage"]["prompt_tokens"]
        assert set(server.delivered.values()) == {1}, "an answer that arrived was asked for again"
        expected = Counter()
        for fault, times in server.faults.items():
            expected[FAULTS[fault]] += times
        assert sum(expected.values()) == 54 + 18
        assert counts["retries"] == dict(expected)
        assert counts["kinds"]["recommend"]["asked"] == 54
        requests = sum(server.asked.values())
        again, counts = ask(questions)
        assert again == answers
        assert sum(server.asked.values()) == requests, "what was answered was asked again"
        assert (counts["kinds"]["recommend"]["asked"], counts["kinds"]["recommend"]["from_cache"]) == (0, 54)


def test_answers_keep_the_order_of_the_questions_and_a_question_twice_is_asked_once(tmp_path):
    questions = [*texts(9), *texts(9)[::-1], question("question 3", limit=51)]
    with FakeOpenAI() as server:
        answers, counts = Asked(server, tmp_path)(questions)
        assert answers[:9] == answers[9:18][::-1]
        assert len(answers) == 19
        assert sum(server.asked.values()) == 10, "another limit is another question"
        assert counts["kinds"]["recommend"]["asked"] == 10


def test_a_question_without_an_answer_is_named_and_asked_again_by_the_same_command(tmp_path):
    def plan(text: str, times: int) -> str | None:
        return "500" if text == "question 5" and server.broken else None

    with FakeOpenAI(plan) as server:
        server.broken = True
        ask = Asked(server, tmp_path, "teacher.retries=2")
        with pytest.raises(UserError, match=r"1 of 20 questions have no answer.*3 times.*status 500.*only the rest"):
            ask(texts(20))
        assert server.asked["question 5"] == 3
        assert len(server.delivered) == 19, "the others were asked all the same"
        server.broken = False
        before = sum(server.asked.values())
        assert len(ask(texts(20))[0]) == 20
        assert sum(server.asked.values()) == before + 1


def test_a_teacher_that_answers_nobody_is_left_alone(tmp_path):
    with FakeOpenAI(lambda text, times: "503") as server:
        ask = Asked(server, tmp_path, "teacher.retries=1", "teacher.concurrency=4")
        with pytest.raises(UserError, match=r"100 of 100 questions have no answer.*the rest was not asked"):
            ask(texts(100))
        assert sum(server.asked.values()) <= 4 * 2 * 2


def test_a_server_that_is_not_there(tmp_path):
    with FakeOpenAI() as server:
        ask = Asked(server, tmp_path, "teacher.retries=1", "teacher.concurrency=2")
    with pytest.raises(UserError, match="broken connection"):
        ask(texts(4))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", r"OPENAI_API_KEY is refused by .*\*\*\*"),
        ("403", "OPENAI_API_KEY is refused"),
        ("404", r"teacher\.model=any cannot be asked"),
        ("quota", "out of quota"),
    ],
)
def test_what_cannot_get_better_stops_at_once(tmp_path, monkeypatch, fault, says):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with FakeOpenAI(lambda text, times: fault) as server:
        with pytest.raises(UserError, match=says) as raised:
            Asked(server, tmp_path, "teacher.concurrency=2")(texts(50))
        assert "sk-very-secret" not in str(raised.value)
        assert sum(server.asked.values()) <= 2
        assert server.keys == {"Bearer sk-very-secret"}


def test_what_is_under_way_when_the_teacher_stops_is_kept(tmp_path):
    """The money runs out while seven others are being answered."""
    with FakeOpenAI(lambda text, times: "quota" if text == "question 0" else None, pace=0.2) as server:
        with pytest.raises(UserError, match="out of quota"):
            Asked(server, tmp_path, "teacher.concurrency=8")(texts(50))
        assert 7 <= len(server.delivered) <= 15
        with AnswerCache(tmp_path) as cache:
            identity = OpenAITeacher(config(server)).identity
            kept = [answer for answer in cache.find(identity, texts(50)) if answer is not None]
        assert len(kept) == len(server.delivered)


def test_one_refused_question_among_others_counts_as_answered_with_nothing(tmp_path):
    with FakeOpenAI(lambda text, times: "400" if text == "question 7" else None) as server:
        ask = Asked(server, tmp_path)
        answers, counts = ask(texts(20))
        assert [at for at, answer in enumerate(answers) if not answer.text] == [7]
        assert counts["kinds"]["recommend"] | {"cost_now": 0, "cost": 0} == {
            "asked": 19, "from_cache": 0, "refused": 1, "cost_now": 0, "cost": 0,
            "prompt_tokens": sum(len(f"question {n}") // 4 for n in range(20) if n != 7),
            "completion_tokens": sum(a.completion_tokens for a in answers),
        }  # fmt: skip
        # It was not kept, so a teacher that changed its mind would be heard; alone, it is still no fault of all.
        assert ask(texts(20))[0][7].text == ""
        assert server.asked["question 7"] == 2


def test_a_teacher_that_refuses_everything_is_not_asked_everything(tmp_path):
    with FakeOpenAI(lambda text, times: "400") as server:
        with pytest.raises(UserError, match=r"refuses every question.*status 400 it is.*per_question"):
            Asked(server, tmp_path, "teacher.concurrency=2")(texts(50))
        assert sum(server.asked.values()) <= 4
        with pytest.raises(UserError, match="refuses every question"):
            Asked(server, tmp_path)(texts(1))


def test_no_more_questions_are_under_way_than_allowed(tmp_path):
    with FakeOpenAI(pace=0.05) as server:
        Asked(server, tmp_path, "teacher.concurrency=5")(texts(40))
        assert server.most_under_way == 5


def test_requests_a_minute_are_kept_to(tmp_path):
    with FakeOpenAI() as server:
        ask = Asked(server, tmp_path, "teacher.requests_per_minute=1200")
        began = time.monotonic()
        ask(texts(30))
        assert max(server.times) - began >= 29 * 0.05


def test_tokens_a_minute_are_those_of_the_answers(tmp_path):
    """Each reserves 13 tokens and takes about 23: the next question waits for the rest. A second's worth is free."""
    with FakeOpenAI() as server:
        ask = Asked(server, tmp_path, "teacher.tokens_per_minute=12000", "teacher.concurrency=1")
        began = time.monotonic()
        answers, _ = ask(texts(20))
        used = sum(answer.prompt_tokens + answer.completion_tokens for answer in answers[:-1])
        assert max(server.times) - began >= (used - 200) / 200 * 0.9


def test_what_is_sent(tmp_path):
    with FakeOpenAI() as server:
        Asked(server, tmp_path)(texts(1))
        sent = server.bodies[-1]
        assert sent == {
            "model": "any", "messages": [{"role": "user", "content": "question 0"}], "max_tokens": 50, "temperature": 0.0,
        }  # fmt: skip
        thinking = ("teacher.temperature=null", "teacher.limit_field=max_completion_tokens", "teacher.extra_tokens=1000",
                    "+teacher.extra.reasoning_effort=low")  # fmt: skip
        Asked(server, tmp_path, *thinking)(texts(1))
        sent = server.bodies[-1]
        assert "temperature" not in sent
        assert (sent["max_completion_tokens"], sent["reasoning_effort"]) == (1050, "low")
        assert "max_tokens" not in sent


def ratings_question(number: int) -> Question:
    return judge(
        Conversation("c", "c", (Message("user", f"Something {number}?"),), ()),
        [Item("Heat", 1995), Item("Big")],
        "movies",
    )


def test_ratings_and_descriptions_are_asked_for_as_json_of_a_schema(tmp_path):
    with FakeOpenAI() as server:
        (rated, described), _ = Asked(server, tmp_path, "teacher.concurrency=1")(
            [ratings_question(1), describe([Item("Heat", 1995), Item("Big")], "movies")]
        )
        assert json.loads(rated.text).keys() == {"1", "2"}
        assert ratings(rated.text, 2).faulty == ()
        assert descriptions(described.text, 2).keys() == {1, 2}
        schemas = [body["response_format"]["json_schema"]["schema"] for body in server.bodies]
        assert schemas[0]["required"] == ["1", "2"]
        assert schemas[0]["properties"]["1"] == {"type": "integer", "enum": [-2, -1, 0, 1, 2]}
        assert schemas[1]["required"] == ["items"]
        assert "one JSON object" in server.bodies[0]["messages"][-1]["content"]


def test_an_endpoint_without_schemas_is_asked_for_text_and_remembered(tmp_path):
    with FakeOpenAI(schemas=False) as server:
        answers, counts = Asked(server, tmp_path, "teacher.concurrency=1")([ratings_question(n) for n in range(5)])
        assert all(ratings(answer.text, 2).faulty == () for answer in answers)
        assert ["response_format" in body for body in server.bodies] == [True] + [False] * 5
        assert counts["kinds"]["judge"]["refused"] == 0
        assert "JSON" not in server.bodies[1]["messages"][-1]["content"]


def said(content: str | None, finish_reason: str = "stop", **more) -> dict:
    """A choice of a reply."""
    return {"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish_reason}


LIST = "1. Heat (1995)\n2. Alien (1979)"
OF_NO_USE = {
    "empty": (said(""), "the answer is empty.*extra_tokens"),
    "blank": (said(" \n"), "the answer is empty.*extra_tokens"),
    "none": (said(None), "the answer is empty.*enable_thinking"),
    "a thought": (said("<think>Heat (1995)?</think>\n"), "thoughts and nothing else.*extra_tokens"),
    "cut off": (said(None, "length"), r"used all its tokens.*teacher\.extra_tokens"),
    "cut off in a thought": (said("<think>\nmaybe Ronin (1998)", "length"), r"used all its tokens.*teacher\.template"),
    "thought apart": (said("", "stop", reasoning_content="Heat (1995)"), "the answer is empty.*extra_tokens"),
    "refused in a field": (said(None, "stop", refusal="I can't help with that."), "declines: .I can.t help"),
    "refused in prose": (said("I'm sorry, but I can't help with that."), "no item can be read.*sorry"),
    "withheld": (said(None, "content_filter"), "content filter"),
}


@pytest.mark.parametrize("name", OF_NO_USE)
def test_an_answer_of_no_use_is_one_refused_question_and_never_kept(tmp_path, caplog, name):
    choice, says = OF_NO_USE[name]
    with FakeOpenAI(lambda text, times: choice if text == "question 7" and server.odd else None) as server:
        server.odd = True
        ask = Asked(server, tmp_path)
        with caplog.at_level("WARNING", "convrec_r1"):
            answers, counts = ask(texts(20))
        assert [at for at, answer in enumerate(answers) if not answer.text] == [7]
        kind = counts["kinds"]["recommend"]
        assert (kind["asked"], kind["refused"]) == (19, 1)
        assert re.search(f"1 of 20 questions have no usable answer.*{says}", caplog.text, re.DOTALL)
        server.odd = False
        before = sum(server.asked.values())
        answers, counts = ask(texts(20))
        assert all(answer.text for answer in answers)
        assert sum(server.asked.values()) == before + 1, "it is asked again, and no other"
        assert counts["kinds"]["recommend"]["refused"] == 0


@pytest.mark.parametrize("name", OF_NO_USE)
def test_a_teacher_that_gives_nothing_of_use_is_left_alone(tmp_path, name):
    choice, says = OF_NO_USE[name]
    with FakeOpenAI(lambda text, times: choice) as server:
        with pytest.raises(UserError, match=rf"(?s)gives no usable answer to every question.*{says}"):
            Asked(server, tmp_path, "teacher.concurrency=2", "teacher.retries=1")(texts(50))
        assert sum(server.asked.values()) <= 10


def test_more_refused_questions_than_allowed_end_the_job(tmp_path):
    """A fifth of them, where a tenth is allowed; and all answers are kept."""
    with FakeOpenAI(lambda text, times: "400" if text.endswith(("3", "8")) else None) as server:
        with pytest.raises(UserError, match=r"refuses \d+ of 40 questions.*teacher\.most_refused=0\.1"):
            Asked(server, tmp_path, "teacher.concurrency=1")(texts(40))
        answers, counts = Asked(server, tmp_path, "teacher.most_refused=0.2")(texts(40))
        assert sum(not answer.text for answer in answers) == counts["kinds"]["recommend"]["refused"] == 8
        assert set(server.delivered.values()) == {1}
        with pytest.raises(UserError, match="1 of 4 questions"):
            Asked(server, tmp_path, "teacher.most_refused=0")([question("x 1"), question("x 3"), *texts(2)])


def test_few_questions_are_no_reason_to_give_up(tmp_path):
    with FakeOpenAI(lambda text, times: "400" if text == "question 3" else None) as server:
        answers, _ = Asked(server, tmp_path)(texts(4))
        assert [bool(answer.text) for answer in answers] == [True, True, True, False]


def test_an_empty_answer_is_asked_for_once_more(tmp_path):
    with FakeOpenAI(lambda text, times: said("") if times == 0 else None) as server:
        answers, counts = Asked(server, tmp_path)(texts(5))
        assert all(answer.text for answer in answers)
        assert counts["retries"] == {"empty answer": 5}


def test_an_empty_answer_of_an_older_cache_is_asked_for_again(tmp_path):
    with FakeOpenAI() as server:
        ask = Asked(server, tmp_path)
        ask(texts(3))
        db = sqlite3.connect(tmp_path / "answers.sqlite")
        db.execute("UPDATE answers SET text = '' WHERE key = (SELECT min(key) FROM answers)")
        db.commit()
        db.close()
        answers, counts = ask(texts(3))
        assert all(answer.text for answer in answers)
        assert counts["kinds"]["recommend"]["asked"] == 1
        assert ask(texts(3))[1]["kinds"]["recommend"]["asked"] == 0


def test_thoughts_are_no_part_of_an_answer_and_are_said_to_be_ignored(tmp_path, caplog):
    def plan(text: str, times: int) -> dict:
        if text == "question 0":
            return said(f"<think>\n3. Ronin (1998)\n</think>\n{LIST}")
        return said(LIST, reasoning_content="Ronin (1998)?")

    with FakeOpenAI(plan) as server, caplog.at_level("INFO", "convrec_r1"):
        for _ in range(2):  # as it comes, and from the cache
            answers, _ = Asked(server, tmp_path)(texts(4))
            assert [answer.text.strip() for answer in answers] == [LIST] * 4
    assert caplog.text.count("sends its thoughts apart (reasoning_content)") == 1


@pytest.mark.parametrize("form", ["86400", "date"])
def test_a_teacher_that_asks_for_a_day_is_given_up_at_once(tmp_path, form):
    later = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    with FakeOpenAI(lambda text, times: "429", retry_after=later if form == "date" else form) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"asks to wait 86(400|39\d) s .*slow down.*teacher\.longest_wait=600"):
            Asked(server, tmp_path, "teacher.concurrency=2")(texts(50))
        assert time.monotonic() - began < 10
        assert sum(server.asked.values()) <= 2


def test_a_wait_that_is_not_too_long_is_told_of_and_ends_with_the_job(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(interviews, "_REPORTED", 0.2)

    def plan(text: str, times: int) -> str | None:
        return "429" if times == 0 else None

    with FakeOpenAI(plan, retry_after="0.5") as server, caplog.at_level("WARNING", "convrec_r1"):
        answers, _ = Asked(server, tmp_path, "teacher.concurrency=4")(texts(4))
        assert all(answer.text for answer in answers)
        assert caplog.text.count("The teacher asks to wait") == 1

    def other(text: str, times: int) -> str | None:
        return "429" if text == "question 1" else "401"

    with FakeOpenAI(other, retry_after="500") as server:
        began = time.monotonic()
        with pytest.raises(UserError, match="is refused by"):
            Asked(server, tmp_path / "other", "teacher.concurrency=2")([question("question 1"), question("question 2")])
        assert time.monotonic() - began < 10, "nobody waits for what will not be asked"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5.0), ("0.5", 0.5), ("", None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_the_two_forms_of_retry_after(header, seconds):
    assert seconds_of(header) == seconds


def test_a_question_that_is_moderated_is_one_refused_question(tmp_path):
    with FakeOpenAI(lambda text, times: "moderated" if text == "question 7" else None) as server:
        answers, _ = Asked(server, tmp_path)(texts(20))
        assert [at for at, answer in enumerate(answers) if not answer.text] == [7]


def test_template_arguments_are_sent_and_make_another_teacher(tmp_path):
    with FakeOpenAI() as server:
        Asked(server, tmp_path)(texts(1))
        assert "chat_template_kwargs" not in server.bodies[-1]
        assert "template" not in OpenAITeacher(config(server)).identity, "answers of before are found"
        Asked(server, tmp_path, "+teacher.template.enable_thinking=false")(texts(1))
        assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "change", ["teacher.model=other", "teacher.temperature=1", "teacher.extra_tokens=5", "+teacher.extra.top_p=0.5"]
)
def test_another_teacher_is_asked_itself(tmp_path, change):
    with FakeOpenAI() as server:
        Asked(server, tmp_path)(texts(3))
        Asked(server, tmp_path, "teacher.concurrency=1", "teacher.timeout=9")(texts(3))
        assert sum(server.asked.values()) == 3, "how it is asked does not make it another"
        Asked(server, tmp_path, change)(texts(3))
        assert sum(server.asked.values()) == 6


def test_an_endpoint_elsewhere_needs_a_key(tmp_path):
    cfg = make_config("teacher=openai", "teacher.model=any", "teacher.base_url=http://192.0.2.1/v1").teacher
    with (
        AnswerCache(tmp_path) as cache,
        Interview(OpenAITeacher(cfg), cache, cfg) as interview,
        pytest.raises(UserError, match=r"OPENAI_API_KEY \(teacher\.api_key_env\), which is not set"),
    ):
        interview.ask(texts(1), "Questions")


def test_several_askers_share_what_they_find_out(tmp_path):
    """Two interviews at once, in threads, with the same questions: as two runs of a sweep are."""
    found = {}
    with FakeOpenAI(pace=0.02) as server:
        asks = [Asked(server, tmp_path, "teacher.concurrency=2") for _ in range(2)]
        threads = [
            threading.Thread(target=lambda at=at, ask=ask: found.update({at: ask(texts(30))}))
            for at, ask in enumerate(asks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(server.delivered.values()) == {1}
    assert found[0][0] == found[1][0]
    assert sorted(counts["kinds"]["recommend"]["asked"] for _, counts in found.values()) == [0, 30]


def test_a_cache_finds_what_it_was_given(tmp_path):
    answers = [Answer(f"answer {n} \u00e9\U0001f3ac", n, n + 1) for n in range(1200)]
    questions = texts(1200)
    with AnswerCache(tmp_path) as cache:
        for asked, answer in zip(questions, answers, strict=True):
            cache.add("me", asked, answer)
        cache.add("me", questions[0], Answer("another", 0, 0))
    with AnswerCache(tmp_path) as cache:
        assert cache.find("me", questions) == answers, "the first answer stays"
        assert cache.find("you", questions[:2]) == [None, None]
        assert cache.find("me", []) == []


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
def test_a_file_that_is_no_cache(tmp_path, content):
    (tmp_path / "answers.sqlite").write_bytes(content)
    if not content:  # what a run leaves that was killed as it began
        with AnswerCache(tmp_path) as cache:
            assert cache.find("me", texts(1)) == [None]
        return
    with pytest.raises(UserError, match=r"answers\.sqlite: .*teacher\.cache=FOLDER"), AnswerCache(tmp_path):
        pass


def test_a_cache_of_another_format_is_refused(tmp_path):
    db = sqlite3.connect(tmp_path / "answers.sqlite")
    db.execute("CREATE TABLE answers (question TEXT, answer TEXT)")
    db.close()
    with pytest.raises(UserError, match=r"answers\.sqlite: .*teacher\.cache=FOLDER"), AnswerCache(tmp_path):
        pass


def test_estimates_by_hand(tmp_path):
    """40 characters are 10 tokens until the teacher has given 20 answers; then its own rates."""
    asked = [question("x" * 40 + str(n).zfill(2)) for n in range(20)]
    coming = [question("y" * 84), question("z" * 42, kind="judge")]
    with AnswerCache(tmp_path) as cache:
        assert estimate(coming, cache, "me") == Estimate(2, round((84 + 42) / 4), 20)
        for each in asked:
            cache.add("me", each, Answer("", 21, 30))  # half a token a character; three times what was expected
        assert estimate(coming, cache, "me") == Estimate(2, round(84 / 2 + 42 / 4), 30 + 10)
        assert estimate(coming, cache, "you") == Estimate(2, round((84 + 42) / 4), 20)
    cfg = make_config("teacher.price_in=0.5", "teacher.price_out=2").teacher
    assert price(3_000_000, 500_000, cfg) == pytest.approx(2.5)
    assert in_words(1_234_567, 340, cfg) == "1.23M tokens in, 340 out, $0.62"
    assert price(1, 1, make_config("teacher=openai", "teacher.price_in=0.5").teacher) is None
