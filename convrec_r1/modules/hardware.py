"""Choose devices and precision for what the machine has: `trainer=auto`."""

from dataclasses import replace
from pathlib import Path

from convrec_r1.cluster.train import Group
from convrec_r1.modules.config import TrainerConfig
from convrec_r1.modules.launch import devices_for, launched


def choose_hardware(cfg: TrainerConfig, *, per_step: tuple[int, ...]) -> tuple[TrainerConfig, str]:
    """Fill in what `cfg` leaves to the machine. Return it with a sentence on what was chosen and why.

    Args:
        per_step: numbers that must divide among the processes (prompts of an RL step, samples of an SFT step).
    """
    gpus = gpu_count() if cfg.accelerator != "cpu" else 0
    on_gpu = cfg.accelerator == "gpu" or (cfg.accelerator == "auto" and gpus > 0)
    devices = devices_for(cfg, launched())
    why = ""
    if devices is None:
        devices = 1
        if on_gpu:
            fitting = [d for d in range(1, gpus + 1) if all(number % (d * cfg.nodes) == 0 for number in per_step)]
            devices = max(fitting, default=1)
            if devices < gpus:
                why = f" of {gpus}: {' and '.join(map(str, per_step))} samples per step do not divide among more"
    chosen = replace(
        cfg,
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices,
        precision=cfg.precision or ("bf16-mixed" if on_gpu else "32-true"),
    )
    what = f"{devices} GPU{'s' if devices > 1 else ''}{why}" if on_gpu else "CPU"
    reason = "; torch sees no GPU here" if cfg.accelerator == "auto" and not on_gpu else ""
    return chosen, f"Trainer: {what}, {chosen.precision}{reason}."


def training_group(cfg: TrainerConfig) -> Group:
    """Return the training processes that a run asks Ray for."""
    return Group(cfg.devices or 1, cfg.nodes, gpu=cfg.accelerator == "gpu")


def gpu_count() -> int:
    """Return the number of GPUs that torch sees."""
    import torch  # seconds to import, and some commands never train

    return torch.cuda.device_count()


def is_cpu_only(accelerator: str) -> bool:
    """Return whether a run with this `trainer.accelerator` stays on the CPU. Looks for devices only, without torch."""
    return accelerator == "cpu" or (accelerator == "auto" and not any(Path("/dev").glob("nvidia[0-9]*")))
