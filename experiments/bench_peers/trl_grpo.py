"""TRL's side of the bench: GRPOTrainer, one step a turn. Runs in .venv-peers, without this project's package.

Its reward is almost free: the number of characters of a list. Settings that differ from TRL's defaults are in `arguments`, with
the reason.
"""

import os
import tempfile
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from turns import Turns, options, read_prompts


def reward(completions, **_):
    """Return a number for each completion."""
    return [float(len(text)) for text in completions]


class Timed(GRPOTrainer):
    """Notes how long sampling takes in a step, and what it sampled."""

    rollout = 0.0

    def _generate(self, *given, **named):
        start = time.perf_counter()
        result = super()._generate(*given, **named)
        self.rollout = time.perf_counter() - start
        return result


class Gate(TrainerCallback):
    """Makes each step wait for its turn, and reports it."""

    def __init__(self, turns: Turns, rows: int) -> None:
        self.turns, self.rows = turns, rows
        self.trainer: Timed | None = None
        self.start = 0.0

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.turns.ready(
                torch=torch.__version__,
                threads=torch.get_num_threads(),
                transformers=transformers.__version__,
                trl=trl.__version__,
            )
        self.turns.begin()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        trainer = self.trainer
        seconds = time.perf_counter() - self.start
        length = trainer._metrics["train"]["completions/mean_length"][-1]
        self.turns.end(rollout=trainer.rollout, train=seconds - trainer.rollout, new_tokens=length * self.rows)


def arguments(given, folder: str) -> GRPOConfig:
    """Return TRL's arguments: the same optimization as ours, and on a CPU its fastest settings."""
    rows = given.prompts * given.group
    return GRPOConfig(
        output_dir=folder,
        max_steps=given.steps,
        seed=given.seed,
        # The same work.
        num_generations=given.group,
        per_device_train_batch_size=given.micro_batch or rows,
        gradient_accumulation_steps=rows // (given.micro_batch or rows),
        max_completion_length=given.new_tokens,
        temperature=1.0,
        num_iterations=1,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.99,
        weight_decay=0.0,
        max_grad_norm=1.0,
        # Speed.
        use_cpu=True,
        bf16=False,  # True by default; float32 as ours
        gradient_checkpointing=False,  # True by default; it recomputes the forward pass
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--micro-batch", type=int, default=0, help="per_device_train_batch_size. 0: the whole step")
    given = parser.parse_args()
    turns = Turns()
    tokenizer = AutoTokenizer.from_pretrained(given.workload / "model")
    lm = AutoModelForCausalLM.from_pretrained(given.workload / "model", dtype=torch.float32)
    asked = read_prompts(given.workload, given.tokens)
    if tokenizer(asked[0]["text"])["input_ids"] != asked[0]["ids"]:
        raise SystemExit(
            "The tokenizer reads the prompts in other tokens than ours: the two would not do the same work."
        )
    gate = Gate(turns, given.prompts * given.group)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=lm,
            reward_funcs=reward,
            args=arguments(given, folder),
            train_dataset=Dataset.from_list([{"prompt": p["text"]} for p in asked]),
            processing_class=tokenizer,
            callbacks=[gate],
        )
        gate.trainer = trainer
        trainer.train()


if __name__ == "__main__":
    main()
