"""Paths with characters of Hydra's grammar: they work, in one run and in a sweep, or the answer says how to quote them."""

import contextlib
import string

import pytest
from support import SMALL_MODEL, SMOKE, assert_user_error, compose_config, hydra_compose, run_command

from convrec_r1.base.errors import UserError
from convrec_r1.config.files import conf_folder, expand
from convrec_r1.data import movieland
from convrec_r1.distill.export import write_dataset

NAMES = (
    *(
        "plain",
        "a b",
        "a=b",
        "a(1)",
        "(1)",
        "[b]",
        "a[b]",
        "{b}",
        "a{b}",
        "a,b",
        "it's",
        'a"b',
        "'q'",
        '"q"',
        "~x",
        "$HOME",
    ),
    *(
        "a#b",
        "a;b",
        "a&b",
        "a|b",
        "a:b",
        "a: b",
        "a%20b",
        "a\\b",
        "a\\'b",
        "x\\",
        " lead",
        "trail ",
        "-x",
        "+x",
        "007",
        "1e5",
    ),
    *("a\tb", "a`b", "a<b>", "a*?b", "null1", "func(x)", "a!", "@x", "\u00e9t\u00e9", "\u65e5\u672c"),
)
VALUES = (
    *(
        "seed=1",
        "seed=1,2,3",
        "rl.lr=1e-6",
        "warm_start=null",
        "eval.ks=[1,5]",
        "algo=grpo",
        "seed=range(1,4)",
        "~callbacks",
    ),
    *(
        "+model.template.a={b: 1}",
        "data.instruction='It is (so): {n}'",
        "checkpoint='a b'",
        "data.options={}",
        "runs=[a,b]",
    ),
    "runs='a/*'",
)


def read(argument: str, key: str = "path"):
    return compose_config(argument).data[key]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_read_as_it_is(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert read(f"data.path={tmp_path / name}") == str(tmp_path / name)
    assert read(f"data.path={name}") == name
    assert compose_config(f"model={tmp_path / name}").model.path == str(tmp_path / name)
    assert compose_config(f"model={tmp_path / name}").model.name == name.rstrip("\\").rpartition("\\")[2], "Windows too"


@pytest.mark.parametrize("character", string.punctuation + " \u00e9\u65e5")
def test_text_is_read_as_it_is_or_the_answer_says_how_to_quote_it(character):
    for text in (f"/x/a{character}b", f"/x/{character}b", f"/x/a{character}", f"a{character}b", f"{character}b"):
        if "${" in text or character == ",":  # a sweep
            continue
        with contextlib.suppress(UserError):
            (argument,) = expand([f"data.path={text}"])
            assert read(argument) == text.strip()
            continue
        with pytest.raises(UserError, match=r"(?s)data\.path=.*cannot be read.*Quote texts with special characters"):
            expand([f"data.path={text}"])
        assert text[0] in "[{(\"'" or text == "a(b", "everything else is plainly text"


@pytest.mark.parametrize("argument", VALUES)
def test_what_hydra_reads_is_not_touched(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1", "null", "grpo", "2", "1e-6"):
        (tmp_path / name).touch()
    if argument == "rl.lr=1e-6":
        assert compose_config(argument).rl.lr == 1e-6
    else:
        assert expand([argument]) == [argument]


def test_lists_and_sweeps_are_quoted_part_by_part():
    assert expand(["runs=[/a (1)/*,/b,3]"]) == ["runs=['/a (1)/*',/b,3]"]
    assert expand(["data.path=/a (1),/b"]) == ["data.path='/a (1)','/b'"]
    assert compose_config("runs=[/a (1)/*,/b]").runs == ["/a (1)/*", "/b"]


@pytest.mark.parametrize(
    "text", ["2026_11", "1e5", "12e456", "123e4567890abcde", "1.50", "+5", "true", "nan", "007", "-0"]
)
def test_a_text_that_looks_like_a_number_stays_as_it_is_written(text):
    assert compose_config(f"name={text}").name == text
    assert compose_config(f"study={text}").study == text
    assert compose_config(f"kept.clear=[{text}, b]").kept["clear"] == [text, "b"]
    assert all(text in argument for argument in expand([f"study=a,{text}"]))
    assert hydra_compose(*expand([f"data.path={text}"])).data.path == text


@pytest.mark.parametrize(
    "argument", ["reward=0", "model=true", "algo=1e5", "data=2026_11", "+experiment=7", "-m data=1,2"]
)
@pytest.mark.processes
def test_a_choice_that_looks_like_a_number_is_looked_for_and_not_found(argument, tmp_path):
    """Hydra takes a number for a choice as a fault of the program."""
    result = run_command(*argument.split(), "logger=none", cwd=tmp_path)
    assert_user_error(result, argument.rpartition("=")[2].split(",")[0])


def test_numbers_and_null_keep_their_meaning_elsewhere():
    assert compose_config("rl.lr=1e-5").rl.lr == 1e-5
    assert compose_config("name=null").name is None
    assert compose_config("eval.ks=[1,1_0]").eval.ks == [1, 10]
    assert expand(["task=eval", "algo=grpo", "seed=1_0"]) == ["task=eval", "algo=grpo", "seed=1_0"]


def test_a_home_folder_is_found_everywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    for given in ("data.path=~/data", "outputs=~/data", "checkpoint=~/new"):
        assert expand([given]) == [given.replace("~", f"'{tmp_path}", 1) + "'"]
    assert expand(["runs=[~/a,b]"]) == [f"runs=['{tmp_path}/a',b]"]
    assert expand(["--config-dir=~/data"]) == [f"--config-dir={tmp_path}/data"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["algo", "grpo"], "'algo' is not KEY=VALUE"),
        (["algo=grpo", "=", "x"], "'=' is not KEY=VALUE"),
        (["data.path=/my", "folder"], r"quote both together: 'data.path=/my folder'"),
        (["data.path=f(x"], "cannot be read"),
        (["runs=[a (1),[b(]"], r"runs=\['text 1','text \(2\)'\]"),
    ],
)
def test_what_cannot_be_read_is_answered(arguments, says):
    with pytest.raises(UserError, match=says):
        expand(arguments)


def test_a_reference_in_the_name_of_a_file_cannot_be_quoted(tmp_path):
    (tmp_path / "${n}").mkdir()
    with pytest.raises(UserError, match="begins a reference to another key"):
        expand([f"data.path={tmp_path}/${{n}}"])


def test_folders_ids_and_choices_are_mixed_in_a_sweep(tmp_path):
    mine = tmp_path / "my model (1), caf\u00e9"
    mine.mkdir()
    (sweep,) = expand([f"model=tiny,'{mine}',Qwen/Qwen3-0.6B"])
    choices = sweep.removeprefix("model=").split(",")
    assert choices[0] == "tiny"
    assert hydra_compose(f"model={choices[1]}").model.path == str(mine), "what a cell of the sweep is given"
    for choice in choices[1:]:
        composed = hydra_compose("model=hub", f"model={choice}")
        assert composed.model.path in (str(mine), "Qwen/Qwen3-0.6B")


@pytest.mark.processes
def test_one_run_and_a_sweep_with_such_paths_everywhere(tmp_path):
    """Data, outputs, config folders and models: what works for one run works in a sweep."""
    odd = tmp_path / "a (1), it's=[caf\u00e9] #1"
    data, folder = odd / "data", odd / "conf"
    write_dataset(movieland.load(n_items=5, sizes={"train": 8, "validation": 2, "test": 2}), data)
    (folder / "algo").mkdir(parents=True)
    text = (conf_folder() / "algo" / "grpo.yaml").read_text()
    (folder / "algo" / "mine.yaml").write_text(text.replace("name: grpo", "name: mine"))
    common = (*SMOKE, *SMALL_MODEL, "rl.steps=1", "eval.baselines=[]", "eval.resamples=10", "data=jsonl", f"data.path={data}",
              f"outputs={odd / 'out'}", "algo=mine")  # fmt: skip
    done = run_command("--config-dir", str(folder), *common, "hydra.run.dir=one", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    policy = tmp_path / "one" / "checkpoints" / "last" / "policy"
    spaced = odd / "policy (1)"
    policy.resolve().rename(spaced)
    found = (f"hydra.searchpath=['file://{str(folder).replace(chr(39), chr(92) + chr(39))}']", "study=s")
    done = run_command("-m", *common, *found, f"model=tiny,{str(spaced)!r}", "warm_start=null", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((odd / "out" / "s").glob("*/summary.json"))) == 2


@pytest.mark.processes
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"name: [x\n", "mine.yaml"),
        ("name: caf\u00e9\n".encode("latin-1"), "utf-8"),
        (b"name: ${nothing}\n", "nothing"),
    ],
)
def test_a_config_file_that_cannot_be_read_has_no_trace(tmp_path, text, says):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_bytes(text)
    for mode in ((), ("-m",)):
        assert_user_error(run_command(*mode, "--config-dir", str(tmp_path), "algo=mine", *SMOKE, cwd=tmp_path), says)
