"""Configuration: every file composes, wrong keys are named, what cannot work is refused before anything loads."""

import itertools
import re

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from support import ROOT, compose_config, hydra_compose, make_config

from convrec_r1.base.errors import UserError
from convrec_r1.config.checks import check
from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.naming import run_dir, run_name

GROUPS = (
    "task", "model", "data", "algo", "algo/shaping", "reward", "rollout", "trainer", "logger", "eval", "scale", "experiment",
    "debug",
)  # fmt: skip
FILES = [(group, path.stem) for group in GROUPS for path in sorted((conf_folder() / group).glob("*.yaml"))]


def options(group: str) -> list[str]:
    return [name for found, name in FILES if found == group]


@pytest.mark.long
@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_composes_into_the_schema(group, name):
    cfg = make_config(f"{group}={name}", "data.path=x", "model.path=x" if name == "hub" else "seed=1")
    assert cfg.n >= 1


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=3", "rl.lr=1e-3", "n=4"), ("algo=grpo", "algo.mu=2"), ("debug=smoke", "rl.steps=4", "eval.ks=[1,2]"),
        ("experiment=search", "rl.steps=3"), ("model=Org/Name", "teacher=openai", "+teacher.extra.a=b"),
        ("algo/shaping=none", "~debug"),
    ],
)  # fmt: skip
def test_tests_compose_what_hydra_composes(overrides):
    assert OmegaConf.to_yaml(compose_config(*overrides)) == OmegaConf.to_yaml(hydra_compose(*overrides))


@pytest.mark.parametrize("wrong", ["rl.step=3", "rl.steps=lots", "nothing=1"])
def test_tests_refuse_what_hydra_refuses(wrong):
    with pytest.raises(ConfigCompositionException) as ours:
        compose_config(wrong)
    with pytest.raises(ConfigCompositionException, match=re.escape(str(ours.value))):
        hydra_compose(wrong)


def test_the_groups_offer_what_the_readme_names():
    assert set(options("algo")) == {
        "sft", "grpo", "dr_grpo", "gspo", "rank_grpo", "rank_grpo_log_decay", "dapo", "rank_grpo_reference",
    }  # fmt: skip
    assert set(options("reward")) == {"exp_inf", "log_decay", "exp", "exp_1", "exp_4"}
    assert set(options("model")) >= {"tiny", "smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b", "llama-3.2-3b"}
    assert set(options("trainer")) == {"auto", "cpu", "gpu", "ddp", "fsdp"}
    assert set(options("rollout")) == {"auto", "hf", "vllm"}
    assert set(options("logger")) == {"wandb", "csv", "none"}


@pytest.mark.parametrize(
    ("algo", "reward"),
    sorted(
        {
            *itertools.product(options("algo"), ("exp_inf", "exp")),
            *itertools.product(("grpo", "rank_grpo"), options("reward")),
        }
    ),
)
def test_algorithms_and_rewards_combine(algo, reward):
    check(make_config(f"algo={algo}", f"reward={reward}"))


TABLE = {
    "grpo": ("sequence", "token", "sequence", "std"),
    "dr_grpo": ("sequence", "token", "constant", "none"),
    "gspo": ("sequence", "sequence", "sequence", "std"),
    "rank_grpo": ("rank", "rank", "rank", "std"),
    "dapo": ("sequence", "token", "token", "std"),
    "rank_grpo_reference": ("rank", "rank", "token", "std"),
}


@pytest.mark.parametrize("name", TABLE)
def test_algorithms_are_those_of_the_table(name):
    algo = make_config(f"algo={name}").algo
    assert (algo.advantage.value, algo.ratio.value, algo.aggregation.value, algo.scale.value) == TABLE[name]
    assert algo.name == name


OWN = {  # clip_low, clip_high, beta, and length shaping: what each paper says
    "grpo": (0.2, 0.2, 0.04, 0.0),
    "dr_grpo": (0.2, 0.2, 0.0, 0.0),
    "gspo": (3e-4, 4e-4, 0.0, 0.0),
    "dapo": (0.2, 0.28, 0.0, 0.0),
    "rank_grpo": (0.06, 0.08, 1e-3, 0.1),
    "rank_grpo_log_decay": (0.06, 0.08, 1e-3, 0.1),
    "rank_grpo_reference": (0.06, 0.08, 1e-3, 0.1),
}


def shaped(algo) -> float:
    shaping = algo.shaping
    assert -shaping.short_eos == shaping.exact_eos == -shaping.overflow
    return shaping.exact_eos


@pytest.mark.parametrize("name", OWN)
def test_algorithms_have_the_values_of_their_own_papers(name):
    algo = make_config(f"algo={name}").algo
    assert (algo.clip_low, algo.clip_high, algo.beta, shaped(algo)) == OWN[name]
    assert (algo.dynamic_sampling > 0, algo.overlong.cache) == ((True, 0.2) if name == "dapo" else (False, 0.0))
    assert not algo.mask_truncated
    assert shaped(make_config(f"algo={name}", "algo/shaping=paper").algo) == 0.1
    assert shaped(make_config(f"algo={name}", "algo/shaping=none").algo) == 0


def test_the_public_code_drops_lines_in_the_text_and_counts_them_in_the_tokens():
    for reward in ("exp_inf", "log_decay"):
        cfg = make_config("algo=rank_grpo_reference", f"reward={reward}")
        assert (cfg.reward.name, cfg.reward.position.value, cfg.algo.count_blank_lines) == (reward, "parsed", True)
    assert make_config("algo=rank_grpo_reference", "reward.position=line").reward.position.value == "line"
    assert make_config("algo=rank_grpo").algo.count_blank_lines is False


COMPARISONS = ("algorithms", "off_policy", "paper_table1", "group_size", "warm_start", "length_shaping")


@pytest.mark.parametrize("algo", ["grpo", "dr_grpo", "gspo", "rank_grpo"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_of_algorithms_holds_equal_what_its_file_says(name, algo):
    cfg = make_config(f"experiment={name}", "scale=cpu", f"algo={algo}", "model=tiny", "data=movieland")
    assert (cfg.algo.clip_low, cfg.algo.clip_high, cfg.algo.beta) == (0.06, 0.08, 1e-3)
    if name != "length_shaping":  # which compares with and without
        assert shaped(cfg.algo) == 0.1
    assert make_config(f"experiment={name}", "data.path=x", f"algo={algo}", "algo.beta=0").algo.beta == 0


def test_the_default_recipe_of_a_large_model_is_the_papers():
    cfg = make_config("model=qwen2.5-0.5b", "data=reddit_v2", "data.path=x")
    assert (cfg.rl.lr, cfg.rl.betas, cfg.rl.prompts_per_step * cfg.algo.group_size) == (1e-6, [0.9, 0.99], 384)
    assert (cfg.algo.clip_low, cfg.algo.clip_high, cfg.algo.beta, cfg.algo.mu) == (0.06, 0.08, 1e-3, 1)
    assert (cfg.sft.lr, cfg.sft.schedule.value, cfg.sft.warmup, cfg.sft.epochs) == (5e-5, "cosine", 0.05, 10)
    assert (cfg.model.max_prompt_length, cfg.model.max_completion_length, cfg.n) == (2048, 1024, 20)
    assert (cfg.rollout.temperature, cfg.rollout.top_p, cfg.model.dtype) == (1.0, 1.0, "float32")


def test_an_experiment_wins_over_its_scale_and_the_command_line_over_both():
    cfg = make_config("experiment=group_size", "algo.group_size=4")
    assert (cfg.study, cfg.n, cfg.rl.prompts_per_step) == ("group_size", 20, 32)
    assert make_config("experiment=group_size", "rl.completions_per_step=32").rl.prompts_per_step == 4
    assert make_config("experiment=algorithms", "rl.lr=3e-3", "n=5").rl.lr == 3e-3
    cfg = make_config("experiment=paper", "data.path=x")
    assert (cfg.data.name, cfg.rl.lr, cfg.rl.steps) == ("reddit_v2", 1e-6, 3000)


STUDIES = sorted(set(options("experiment")) - {"paper"})


def sweep(name: str) -> dict[str, str]:
    """What a study sweeps over: key -> choices, as its file says."""
    return OmegaConf.load(conf_folder() / "experiment" / f"{name}.yaml").hydra.sweeper.params


def test_the_named_studies():
    assert set(STUDIES) == {
        "algorithms", "rewards", "off_policy", "warm_start", "length_shaping", "group_size", "paper_table1", "reference_code",
        "search", "stage1",
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", [s for s in STUDIES if s != "search"])
@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_every_cell_of_every_study_can_work(name, scale, tmp_path):
    """At both sizes, and no two cells are the same run. Seeds change nothing that composing could find out."""
    params = {key: values for key, values in sweep(name).items() if key != "seed"}
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    where = ["data=movieland"] if scale == "cpu" else [f"data.path={tmp_path}", "teacher=openai", "teacher.model=any"]
    names = set()
    for cell in itertools.product(*choices):
        composed = compose_config(f"experiment={name}", f"scale={scale}", *where, *cell)
        names.add(run_name(_root_=composed))
        OmegaConf.resolve(composed)
        cfg = OmegaConf.to_object(composed)
        check(cfg)
        assert cfg.study == name
        assert cfg.n == 20
        assert cfg.rl.steps == (120 if scale == "cpu" else 3000)
    assert len(names) == len(list(itertools.product(*choices)))


def test_log_decay_is_a_choice_of_its_own_and_still_a_reward():
    cfg = make_config("algo=rank_grpo_log_decay")
    assert (cfg.algo.name, cfg.reward.name) == ("rank_grpo", "log_decay")
    assert cfg == make_config("algo=rank_grpo", "reward=log_decay")
    assert make_config("algo=rank_grpo_log_decay", "reward=exp_4").reward.gamma == 4


def test_groups_of_another_size_see_as_many_completions():
    for size in (2, 4, 8, 16):
        cfg = make_config("experiment=group_size", f"algo.group_size={size}")
        assert cfg.rl.prompts_per_step * cfg.algo.group_size == 128


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo.clip=0.2", "clip"),
        ("nonsense=1", "nonsense"),
        ("rl.steps=many", "steps"),
        ("algo.ratio=word", "word"),
        ("algo=ppo", "ppo"),
        ("rollout.sleep=true", "sleep"),
        ("rollout.max_num_seqs=8", "max_num_seqs"),
    ],
)
def test_a_wrong_key_or_type_is_named(override, message):
    with pytest.raises(Exception, match=message):
        make_config(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward=exp", "reward.gamma=0.5"], "reward.gamma"),
        (["reward.kind=exp"], "reward.gamma"),
        (["reward._target_=no.such.Class"], "reward._target_=no.such.Class"),
        (["match._target_=no.such.Rule"], "match._target_=no.such.Rule"),
        (["+callbacks.x._target_=no.such.Thing"], "callbacks.x._target_=no.such.Thing"),
        (["data=redial"], "data.path=DIR"),
        (["data=redial", "data.path=/no/such/place"], "no such file or folder"),
        (["data.catalog=nowhere.csv"], "data.catalog=nowhere.csv"),
        (["model=hub"], "model.path is empty"),
        (["task=eval"], "checkpoint=RUN"),
        (["warm_start=/no/policy"], "folder of a policy"),
        (["rl.prompts_per_step=5", "trainer=ddp", "trainer.devices=2"], "a group is never split"),
        (["algo.minibatches=7"], "algo.minibatches=7"),
        (["algo.group_size=1"], "group of one"),
        (["model=qwen2.5-0.5b", "model.dtype=bfloat16"], "pure bf16"),
        (["model=qwen2.5-0.5b", "trainer.precision=bf16-true"], "round to nothing"),
        (["trainer=fsdp"], "fsdp"),
        (["trainer.strategy=magic"], "choose one of auto, ddp, fsdp"),
        (["rollout._target_=warp.Engine"], "rollout._target_=warp.Engine: cannot be imported"),
        (["rollout.temperature=0"], "rollout.temperature"),
        (["rl.steps=0", "n=0"], "rl.steps=0"),
        (["algo.dual_clip=0.5"], "dual_clip"),
        (["eval.baselines=[luck]"], "luck"),
        (["data=reddit_v2", "data.path=.", "n=5"], "data.prompt=ours"),
        (["sft.betas=[0.9]"], "sft.betas"),
        (["rollout.overlap=-1"], "rollout.overlap=-1: must be at least 0"),
        (
            ["rollout=hf", "rollout.overlap=1"],
            "needs an engine beside the trainer, and HFEngine is none. Add cluster=ray",
        ),
        (["rollout=vllm", "rollout.overlap=1"], "needs an engine beside the trainer"),
        (["rollout=hf", "rollout.workers=2"], "rollout.workers=2: workers run under Ray. Add cluster=ray"),
        (["rollout=vllm", "rollout.workers=1", "cluster=ray", "rollout.sleep=true"], "a worker does not sleep"),
        (["rollout=hf", "rollout.worker_cpus=0"], "rollout.worker_cpus=0"),
        (["rollout=vllm", "rollout.sleep=true", "trainer=cpu"], "rollout.sleep=true"),
        (["rollout=vllm", "rollout.tensor_parallel_size=2"], "does not divide the trainer's 1 processes"),
        (["rollout=vllm", "rollout.top_p=0.9"], "every ratio would be too small"),
        (["rollout.correction=mask", "rollout.top_k=50"], "every ratio would be too small"),
        (["rollout.correction_high=0.9"], "rollout.correction_high=0.9: must be at least 1"),
        (["rollout.correction_low=1"], "rollout.correction_low=1.0: must be below 1"),
        (["rollout=vllm", "rollout.dtype=int8"], "rollout.dtype=int8: choose one of float32"),
        (["rollout=vllm", "rollout.memory_fraction=0"], "rollout.memory_fraction=0"),
        (["rollout=vllm", "rollout.checksum_every=-1"], "rollout.checksum_every=-1"),
        (["rollout=hf", "rollout.timeout=0"], "rollout.timeout=0"),
        (["eval.metric=ndcg@7"], "eval.metric=ndcg@7.*ndcg@5, ndcg@10"),
        (["eval.select=best", "eval.every=0"], "eval.select=best needs evaluations"),
        (["eval.patience=2", "eval.every=0"], "eval.patience needs evaluations"),
        (["eval.patience=0"], "eval.patience=0"),
        (["guard.window=0"], "guard.window=0"),
        (["guard.min_list_length=2", "guard.max_list_length=1"], "nothing would be within both"),
        (["task=compare"], "task=compare needs runs="),
        (["task=compare", "runs=[]"], "task=compare needs runs="),
        (["task=compare", "runs=x", "eval.level=1.5"], "eval.level=1.5"),
    ],
)
def test_what_cannot_work_is_refused_with_the_key(overrides, message):
    with pytest.raises(UserError, match=message):
        check(make_config(*overrides))


def test_vllm_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("convrec_r1.rollout.config.vllm_version", lambda: None)
    with pytest.raises(UserError, match=r"convrec-r1\[vllm\].*make setup-vllm.*rollout=hf"):
        check(make_config("rollout=vllm"))


def test_sampled_tokens_may_be_cut_off_where_nothing_is_corrected():
    check(make_config("rollout.top_p=0.9"))
    check(make_config("rollout.top_p=0.9", "rollout=hf", "rollout.correction=none"))


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(UserError) as caught:
        check(make_config("n=0", "rl.steps=0", "data=redial"))
    assert str(caught.value).count("\n  - ") >= 3


def test_pure_bf16_is_allowed_where_steps_are_large_enough():
    check(make_config("model.dtype=bfloat16"))  # tiny: 3e-4
    with pytest.raises(UserError, match="pure bf16"):
        check(make_config("model.dtype=bfloat16", "rl.lr=1e-6"))


def test_model_may_be_any_id_or_folder():
    assert expand(["model=Qwen/Qwen3-0.6B", "seed=2"]) == [
        "model=hub", "model.path=Qwen/Qwen3-0.6B", "model.name=Qwen3-0.6B", "seed=2",
    ]  # fmt: skip
    assert expand(["model=tiny"]) == ["model=tiny"]
    assert make_config("model=./some/folder").model.path == "./some/folder"


def test_a_run_is_named_after_its_config():
    def of(*overrides):
        return run_name(_root_=compose_config(*overrides))

    assert of("seed=3").startswith("rank_grpo-exp_inf-tiny-movieland-s3-")
    assert of() == of("logger=none") == of("study=other") == of("outputs=/elsewhere")
    assert of() != of("rl.lr=1e-4")
    served = of("rollout=vllm")
    assert served != of()
    assert served == of("rollout=vllm", "rollout.workers=2", "rollout.timeout=5")
    assert of("algo=sft").startswith("sft-tiny-movieland")
    assert "/" not in of("model=Qwen/Qwen3-0.6B")


def test_a_comparison_stands_beside_what_it_compares(tmp_path):
    def of(runs: str) -> str:
        return run_dir(_root_=compose_config("task=compare", f"runs={runs}"))

    assert of(f"{tmp_path}/outputs/study/*") == f"{tmp_path}/outputs/study/comparison"
    assert of(f"{tmp_path}/outputs/study/grpo-*") == f"{tmp_path}/outputs/study/comparison"
    assert of(f"{tmp_path}/outputs/*/*") == f"{tmp_path}/outputs/comparison"
    assert of(f"[{tmp_path}/outputs/a/x,{tmp_path}/outputs/b/y]") == f"{tmp_path}/outputs/comparison"


def test_conf_stands_in_the_checkout():
    assert conf_folder() == ROOT / "conf"
