"""One of the processes of tests/test_ddp.py: ddp_worker.py FOLDER, under torch.distributed.run."""

import os
import sys
from pathlib import Path

import torch
from test_modules import ALGORITHMS, config, reinforce, warm_policy

EXACT = ("rl.steps=2", "rl.prompts_per_step=4", "algo.mu=2", "algo.minibatches=2", "algo.beta=0.01", "rl.lr=1e-3")
"""Several passes and minibatches, so that which lists share an update matters."""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    warm = warm_policy()
    more = ("trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={world}") if world > 1 else ()
    for algo in ALGORITHMS:
        cfg = config(f"algo={algo}", "algo.group_size=4", *EXACT, *more)
        state, _ = reinforce(warm, cfg, folder / algo, rank=rank, world=world)
        if rank == 0:
            torch.save(state, folder / f"{algo}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
