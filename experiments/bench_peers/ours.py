"""Our side of the bench: stage 2 as task=train runs it, with its defaults, one step a turn.

The reward is that of ranked lists: every list is parsed and judged against the catalog.
"""

import os
import tempfile
from pathlib import Path

# As the command sets it, before torch starts its threads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import pytorch_lightning as pl
import torch
from turns import Turns, options, peak_mib, read_prompts, reset_peak
from workload import config

from convrec_r1.config.parts import encoder_for, judge, objective, rl_settings
from convrec_r1.data import Catalog
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.lists import Item
from convrec_r1.modules.fit import fit
from convrec_r1.modules.rl import RLModule
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import load_policy
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.rollout.base import make_engine
from convrec_r1.run.tracker import Tracker


class Timed(RLModule):
    """Notes the peak memory of each step's rollouts. Samples first and learns then."""

    rollout_mib = 0.0

    def learn(self, slots, rollouts, advantages):
        self.rollout_mib = peak_mib()
        reset_peak()
        return super().learn(slots, rollouts, advantages)


class Gate(pl.Callback):
    """Makes each step wait for its turn, and reports it."""

    def __init__(self, turns: Turns, rows: int) -> None:
        self.turns, self.rows = turns, rows

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.turns.ready(torch=torch.__version__, threads=torch.get_num_threads())
        self.turns.begin()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        seen = pl_module.latest
        parts = {name: seen[f"time/{name}"] for name in ("rollout", "reward", "train")}
        rollout, train = pl_module.rollout_mib, peak_mib()
        self.turns.end(
            **parts,
            new_tokens=seen["completions/mean_length"] * self.rows,
            rollout_mib=rollout,
            train_mib=train,
            peak_mib=max(rollout, train),
        )
        reset_peak()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("overrides", nargs="*", help="keys of our config, as in trainer.micro_batch=16")
    given = parser.parse_args()
    turns = Turns()
    cfg = config(
        "data=movieland", "model=tiny", "model.source=pretrained", f"model.path={given.workload / 'model'}",
        f"model.max_prompt_length={given.tokens + 8}", f"model.max_completion_length={given.new_tokens}",
        "algo=grpo", "algo.beta=0", f"algo.group_size={given.group}", "rollout=hf", "trainer=cpu", "logger=none",
        f"rl.prompts_per_step={given.prompts}", f"rl.steps={given.steps}", "rl.lr=1e-6", "rl.schedule=constant",
        "rl.table_rows=0", f"seed={given.seed}", "n=20", *given.overrides,
    )  # fmt: skip
    conversations = [
        Conversation(
            p["id"], p["id"], (Message("user", p["message"]),), tuple(Item(*i) for i in p["ground_truth"]), tuple(p["seen"])
        )
        for p in read_prompts(given.workload, given.tokens)
    ]  # fmt: skip
    policy = prepare_for_training(load_policy(given.workload / "model", cfg.model), cfg.model, cfg.seed)
    encoder = encoder_for(cfg, policy)
    catalog = Catalog.load(given.workload / "catalog.json")
    engine = make_engine(cfg.rollout, policy, max_length=cfg.model.max_length)
    loader = StepLoader(conversations, given.prompts, given.steps, given.seed)
    module = Timed(
        policy, engine, encoder, judge(cfg, catalog), objective(cfg), rl_settings(cfg), Tracker(), loader
    )  # fmt: skip
    cfg.trainer.checkpoint_every = given.steps + 1
    with tempfile.TemporaryDirectory() as folder:
        gate = Gate(turns, given.prompts * given.group)
        fit(module, loader, cfg.trainer, Path(folder) / "checkpoints", description="ours", callbacks=[gate])


if __name__ == "__main__":
    main()
