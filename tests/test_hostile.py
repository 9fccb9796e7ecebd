"""Data, models, runs and configs that mean harm: each claim of what they cannot do is proved by a real attempt."""

# ruff: noqa: E501, RUF001  hostile text is long and ambiguous

import io
import json
import logging
import os
import pickle
import re
import socket
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support import SMOKE, assert_user_error, compose_config, make_config, run_command, tiny_policy

from convrec_r1.base import logs
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl
from convrec_r1.base.tables import Column, Table
from convrec_r1.base.visible import visible
from convrec_r1.config.checks import check
from convrec_r1.config.naming import run_dir, study_dir
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.adapters.reddit_v2 import RedditV2
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.demonstrations import add_demonstrations
from convrec_r1.data.load import digests
from convrec_r1.data.schema import Conversation
from convrec_r1.distill.teachers import served
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.scoring import score
from convrec_r1.lists import Item, format, parse
from convrec_r1.matching import Folded
from convrec_r1.policy.config import ModelConfig
from convrec_r1.policy.load import load_policy
from convrec_r1.policy.wheel import model_from_wheel
from convrec_r1.run.checkpoints import seal

SCRIPT = "<script>alert(1)</script>"
TITLES = {
    "script": f'{SCRIPT}"><img src=x onerror=alert(1)>',
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m red",
    "right-to-left": "\u200fעברית \u202egnp.exe\u202c",
    "nul": "a\x00b",
    "half": "broken \ud83d emoji",
    "template": "{{7*7}} {n} ${oc.env:HOME} %s",
    "markdown": "a|b](javascript:alert(1)) `c`",
    "rich": "[bold red]x[/bold red] [/]",
    "formula": "=cmd|' /C calc'!A0",
    "lines": "one\u2028two\x85three\x0bfour",
    "long": "word " * 210_000,
}
"""By what they attack. The last is a line of 1 MB."""


class Runs:
    """Pickled, it is a call of os.system."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def trace(tmp_path):
    """What a payload would leave behind; that it would is shown first."""
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "the payload ran"


# -- code in data and checkpoints ------------------------------------------------------------------------------------------


def test_a_pickled_catalog_cannot_call(tmp_path, trace):
    (tmp_path / "c.pkl").write_bytes(pickle.dumps([("Heat", 1995), Runs(trace)]))
    with pytest.raises(UserError, match=r"names (posix|nt)\.system"):
        Catalog.load(tmp_path / "c.pkl")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x04]r\xff\xff\xff\xff.", id="numbers an object 4294967295"),
        pytest.param(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".", id="announces a terabyte"),
        pytest.param(b"(" * 100_000 + b".", id="opens and never closes"),
    ],
)
def test_a_few_bytes_of_pickle_do_not_fill_memory(tmp_path, content):
    (tmp_path / "c.pkl").write_bytes(content)
    began = time.monotonic()
    with pytest.raises(UserError, match="not a readable pickle"):
        Catalog.load(tmp_path / "c.pkl")
    assert time.monotonic() - began < 5


def test_values_without_end_make_short_messages(tmp_path):
    value: list = []
    for _ in range(60):
        value = [value, value]  # 2**60 lists once written out
    for odd in (value, {"title": value}, ("Heat", value), ("Heat", 10**5000), 10**5000):
        (tmp_path / "c.pkl").write_bytes(pickle.dumps([odd]))
        with pytest.raises(UserError) as error:
            Catalog.load(tmp_path / "c.pkl")
        assert len(str(error.value)) < 400


def test_an_arrow_column_that_calls_itself_an_image_opens_nothing(tmp_path):
    """datasets would read the file, or the address, that such a column names."""
    from datasets import Dataset, Features, Image, List, Value

    message = List({"role": Value("string"), "content": Value("string")})
    features = Features(prompt=message, groundtruth_with_release_year=List(List(Value("string"))), seen_titles=Image())
    ask = [{"role": "user", "content": "Like Heat?"}]
    row = {"prompt": ask, "groundtruth_with_release_year": [["Heat", "1995"]], "seen_titles": None}
    data = Dataset.from_list([row | {"seen_titles": {"path": "/etc/hostname", "bytes": None}}], features=features)
    data.save_to_disk(str(tmp_path / "train"))
    (tmp_path / "catalog.csv").write_text("title,year\nHeat,1995\n")
    with pytest.raises(
        UserError, match='"seen_titles" must be a list of titles, found an object with the keys bytes, path'
    ):
        RedditV2(tmp_path, Folded()).load()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_policy().save(folder)
    return folder


def copy_of(model: Path, target: Path) -> Path:
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_pickled_model_cannot_call(tmp_path, model, trace):
    folder = copy_of(model, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Runs(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot be read: .*GLOBAL .*system"):
        load_policy(folder, ModelConfig(name="m"))


@pytest.mark.parametrize("model_type", ["llama", "made_up"])
def test_code_beside_a_model_stays_unread(tmp_path, model, trace, model_type):
    folder = copy_of(model, tmp_path / "m")
    (folder / "evil.py").write_text(f"import os\nos.system('touch {trace}')\nclass A:\n    pass\n")
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.A", "AutoTokenizer": ["evil.A", "evil.A"]}
    kind = config["model_type"] if model_type == "llama" else model_type
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": classes, "model_type": kind}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": classes}))
    if model_type == "made_up":
        with pytest.raises(UserError):
            load_policy(folder, ModelConfig(name="m"))
    else:  # transformers has its own code for it
        load_policy(folder, ModelConfig(name="m"))


def test_a_chat_template_cannot_reach_the_system(tmp_path, model, trace):
    policy = load_policy(model, ModelConfig(name="m"))
    policy.tokenizer.chat_template = f"{{{{ cycler.__init__.__globals__.os.system('touch {trace}') }}}}"
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        policy.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


@pytest.mark.processes
def test_a_pickled_checkpoint_cannot_call(tmp_path, trace):
    """The trainer's state of an interrupted run is replaced; the run that goes on from it stops, and runs nothing of it."""
    arguments = (*SMOKE, "hydra.run.dir=run", "eval.every=0", "eval.baselines=[]")
    assert run_command(*arguments, cwd=tmp_path).returncode == 0
    (tmp_path / "run" / "summary.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoints" / "last" / "trainer.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"hostile": Runs(trace)}, checkpoint)
    seal(checkpoint.parent.resolve())  # as whoever can write the one file can write the other
    done = run_command(*arguments, cwd=tmp_path)
    assert_user_error(done, "holds more than plain tensors and values")
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("name", ["../../x==1", "--index-url=http://x==1", "a @ http://x==1", "a==1/../.."])
def test_a_package_has_a_plain_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("CONVREC_R1_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="NAME==VERSION"):
        model_from_wheel(name)
    assert not list(tmp_path.iterdir())


# -- text ------------------------------------------------------------------------------------------------------------------


def ask(number: int, title: str) -> dict:
    said = [{"role": "user", "content": f"Like {title}?"}]
    return {
        "id": f"c{number} {title[:40]}",
        "messages": said,
        "ground_truth": [[title, 1990 + number]],
        "seen": [f"{title} 0"],
    }


def write_data(folder: Path, titles: list[str], copies: int) -> Path:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [
            ask(n, title) | {"id": f"{split}{n}-{i} {title[:40]}"}
            for n, title in enumerate(titles)
            for i in range(copies)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    catalog = [[title, 1990 + n] for n, title in enumerate(titles)]
    (folder / "catalog.json").write_text(json.dumps(catalog))
    return folder


@pytest.mark.parametrize("name", TITLES)
def test_any_title_goes_from_the_catalog_to_the_metrics(tmp_path, name):
    """Read, fingerprinted, written as a list, read from it as the same item, hit, and kept in files that read the same."""
    data = add_demonstrations(jsonl.Jsonl(write_data(tmp_path / "d", [TITLES[name], "Heat"], 1)).load(), 5, Folded())
    digests(data)
    (item, _) = data.catalog
    text = format(data.catalog)
    assert parse(text) == [Item(" ".join(item.title.split()), 1990), Item("Heat", 1991)]
    popularity = Popularity.from_conversations(data["train"], data.catalog)
    found = score([text, text], data["test"], data.catalog, popularity, n=5, ks=[5])
    assert found.values("recall@5")[0].tolist() == [1.0, 1.0]
    found.write_jsonl(tmp_path / "eval.jsonl")
    assert read_jsonl(tmp_path / "eval.jsonl")[-1]["text"] == text
    jsonl.dump(data["test"], tmp_path / "again.jsonl")
    again: list[Conversation] = jsonl.read(tmp_path / "again.jsonl")
    assert again == data["test"]


def test_lines_of_a_megabyte_are_read_in_a_moment():
    from convrec_r1.distill.answers import descriptions, ratings, recommended

    size = 1_000_000
    for line in (
        "x" * size, "a" + " " * size + "b", "1." + " " * size + "x", "(" * size, "* " * (size // 2), "1: " + "," * size, "[" * size,
        "- " + "a - " * (size // 4), "3. " + ": " * (size // 2), '{"a":' * (size // 5), "<think>" * (size // 7), "```\n" * (size // 4),
        "1. x" + "\t" * size + "1999", '"' * size, "{" * size, "\u2013 " * (size // 3), "1" * size, "(1999" * (size // 5),
    ):  # fmt: skip
        for read in (parse, recommended, lambda text: ratings(text, 5), lambda text: descriptions(text, 5)):
            began = time.process_time()
            read(line)
            took = time.process_time() - began
            assert took < 5, f"{took:.1f} s for {line[:20]!r}..."


def test_what_acts_on_a_terminal_is_shown():
    shown = visible("a\x1b[2J\x9b31m\x07\x00\u202e\u2028\tb\nעברית\u200f é")
    assert shown == "a\\x1b[2J\\x9b31m\\x07\\x00\\u202e\\u2028\tb\nעברית\u200f é"


def test_nothing_that_is_logged_acts_or_passes_for_another_line(tmp_path, monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(logs, "console", terminal)
    logs.start_logging(tmp_path / "run.log", is_first=True)
    try:
        text = "title %s\n2026-01-01 00:00:00,000 INFO convrec_r1: forged"
        logging.getLogger("convrec_r1.test").warning(text, TITLES["terminal"] + TITLES["rich"])
    finally:
        logs.start_logging(None, is_first=True)
    log = (tmp_path / "run.log").read_text()
    for said in (log, terminal.file.getvalue()):
        assert r"\x1b[2J\x1b]0;owned\x07\x9b31m" in said
        assert TITLES["rich"] in said
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)
    assert log.count("\n20") == 0


@pytest.mark.parametrize("is_terminal", [True, False])
def test_paths_in_log_lines_are_not_broken(monkeypatch, is_terminal):
    file, path = io.StringIO(), "outputs/main/rank_grpo-exp_inf-tiny-movieland-s1-1f6a3611"
    monkeypatch.setattr(logs, "console", Console(file=file, force_terminal=is_terminal, width=40, color_system=None))
    logs.start_logging(None, is_first=True)
    try:
        logging.getLogger("convrec_r1.test").info("Done in 6 s: %s (fresh=true starts over, :cat: [b] or not)", path)
    finally:
        monkeypatch.undo()
        logs.start_logging(None, is_first=True)
    lines = ["Done in 6 s:", path, "(fresh=true starts over, :cat: [b] or", "not)"]
    assert file.getvalue() == ("\n" if is_terminal else " ").join(lines) + "\n"


def test_markdown_keeps_a_text_in_its_cell():
    cells = [f"x|y\nz {SCRIPT} [l](javascript:alert(1))", "1"]
    lines = Table((Column("a"), Column("b")), [cells]).markdown()
    assert lines[2] == r"| x\|y z \<script\>alert(1)\</script\> [l\](javascript:alert(1)) | 1 |"


# -- a whole run -----------------------------------------------------------------------------------------------------------

SECRETS = {
    "WANDB_API_KEY": "1234567890abcdef1234567890abcdef12345678",
    "OPENAI_API_KEY": "sk-hostile-openai-0123456789",
    "HF_TOKEN": "hf_hostileTokenOfTheHub",
    "VLLM_API_KEY": "hostile-vllm-key-012345",
    "AWS_SECRET_ACCESS_KEY": "hostileAwsSecret/0123456789",
    "DATABASE_PASSWORD": "hostile-database-password",
}


class Page(HTMLParser):
    """Tags, attributes' names, and what is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """SFT, RL and evaluation on hostile titles, with secrets in the environment; then its report."""
    root = tmp_path_factory.mktemp("hostile")
    titles = [title[:2000] for title in TITLES.values()] + ["Heat"]
    write_data(root / "data", titles, 3)
    done = run_command(
        *SMOKE[:1], "logger=wandb", "data=jsonl", "data.path=data", "data.name='a|b <b>x</b>'", "data.demonstrations=neighbours",
        "model.name='m|n'", "data.train_size=24", "sft.steps=15", "hydra.run.dir=runs/run", cwd=root, timeout=580, **SECRETS,
    )  # fmt: skip
    compared = run_command(
        "task=compare",
        "runs=runs/*",
        "hydra.run.dir=out",
        "compare.examples=6",
        "eval.resamples=20",
        cwd=root,
        **SECRETS,
    )
    return root, done, compared


@pytest.mark.processes("run")
def test_a_run_on_hostile_titles_ends_well(hostile_run):
    root, done, compared = hostile_run
    assert done.returncode == 0, done.stdout + done.stderr
    assert compared.returncode == 0, compared.stdout + compared.stderr
    for said in (done.stdout, done.stderr, compared.stdout, (root / "runs" / "run" / "run.log").read_text()):
        assert "\x1b[2J" not in said
        assert "\x00" not in said


@pytest.mark.processes("run")
def test_its_reports_are_inert(hostile_run):
    root, _, _ = hostile_run
    text = next(root.glob("out/**/report.html")).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "b onerror", "iframe", "object"}
    assert not {name for name in page.attributes if name.startswith("on")}
    assert page.text.count("alert(1)") >= 1, "no hostile conversation was shown"
    assert "49" not in re.findall(r"\{\{7\*7\}\}|Like (49)", page.text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    report = (root / "runs" / "run" / "report.md").read_text()
    assert (
        report.startswith("# Rank-GRPO (exp_inf), m\\|n on a\\|b \\<b\\>x\\</b\\>") or r"m\|n on a\|b \<b\>" in report
    )
    rows = [line for line in report.splitlines() if line.startswith("|")]
    assert len({re.sub(r"\\\|", "", row).count("|") for row in rows}) == 1


@pytest.mark.processes("run")
def test_no_secret_is_left_behind(hostile_run):
    root, done, compared = hostile_run
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in files)
    for name, secret in SECRETS.items():
        assert secret not in done.stdout + done.stderr + compared.stdout + compared.stderr, name
        for path in files:
            assert secret.encode() not in path.read_bytes(), f"{name} in {path}"


# -- configs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_a_secret_in_a_config_is_refused_and_not_repeated(tmp_path):
    secret = SECRETS["OPENAI_API_KEY"]
    for value in (secret, "'${oc.env:OPENAI_API_KEY}'", f"'Bearer {secret}'"):
        done = run_command(
            "task=distill",
            "teacher=openai",
            f"+teacher.extra.authorization={value}",
            cwd=tmp_path,
            OPENAI_API_KEY=secret,
        )
        assert_user_error(
            done, "teacher.extra.authorization holds the value of the environment variable OPENAI_API_KEY"
        )
        assert secret not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key", ["teacher.base_url=http://user:hunter22@host:1", "teacher.base_url=http://hunter22@host:1"]
)
def test_a_password_in_an_address_is_refused(key):
    with pytest.raises(UserError, match=r"teacher\.base_url holds a password") as error:
        check(make_config("task=distill", "teacher=openai", "teacher.model=m", key))
    assert "hunter22" not in str(error.value)


@pytest.mark.parametrize("study", ["../../x", "a/b", "..", "/tmp/x", "'a\\b'"])
def test_a_study_is_a_name_and_no_path(study):
    with pytest.raises(UserError, match="is not the name of a folder"):
        study_dir(_root_=compose_config(f"study={study}"))


@pytest.mark.processes
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_a_study_that_is_a_path_makes_nothing(tmp_path, sweep):
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    done = run_command(*sweep, *SMOKE, "study=../../x", cwd=work)
    assert_user_error(done, "is not the name of a folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


def test_names_with_paths_in_them_stay_in_the_study():
    composed = compose_config("data.name=../../x", "model.name=/etc/y", "algo.name=../z", "outputs=out")
    parts = Path(run_dir(_root_=composed)).parts
    assert parts[:2] == ("out", "main")
    assert len(parts) == 3
    assert ".." not in parts


# -- servers ---------------------------------------------------------------------------------------------------------------

LISTENS = """
import socket, sys, time
at = sys.argv.index("--host")
listener = socket.create_server((sys.argv[at + 1], int(sys.argv[sys.argv.index("--port") + 1])))
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="who listens is read from /proc")
def test_a_server_that_is_started_listens_on_loopback_alone(tmp_path, monkeypatch):
    """The process stands in for vLLM: it listens where the command line tells it to."""
    monkeypatch.setattr(served, "SERVE", [sys.executable, "-c", LISTENS])
    monkeypatch.setenv("VLLM_HOST_IP", "0.0.0.0")
    (tmp_path / "scratch").mkdir()
    server = served.LocalProcess(["--host", "0.0.0.0"][:0], tmp_path / "log", tmp_path / "scratch")
    try:
        port = int(server.address.rpartition(":")[2])
        end = time.monotonic() + 30
        while not (found := listeners(port)) and time.monotonic() < end:
            time.sleep(0.2)
        assert found == {"127.0.0.1"}
    finally:
        server.stop()


def listeners(port: int) -> set[str]:
    """Addresses on which anything of this machine listens on a port."""
    found = set()
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:] if Path(file).exists() else []:
            address, state = line.split()[1], line.split()[3]
            host, at = address.split(":")
            if state == "0A" and int(at, 16) == port:
                found.add(socket.inet_ntoa(bytes.fromhex(host)[::-1]) if len(host) == 8 else f"v6 {host}")
    return found
