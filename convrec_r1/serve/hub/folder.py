"""The folder that is published: the policy, how it is asked, its catalog, its card, its training record."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml
from transformers import AutoTokenizer, GenerationConfig

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_text
from convrec_r1.policy.prompts import PLAIN_TEMPLATE
from convrec_r1.serve.hub.card import FIGURE, render, training_config
from convrec_r1.serve.hub.config import PublishConfig
from convrec_r1.serve.hub.trained import Trained
from convrec_r1.serve.package import SETTINGS, write_package

_MODEL = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".py")
"""Files of a model and its tokenizer. Pickles are none of them."""


def write_folder(run: Trained, folder: Path, name: str, options: PublishConfig) -> list[Path]:
    """Write the folder, in place of an earlier one. Return its files, sorted.

    Args:
        name: id on the Hub, for the card.
    Raises:
        UserError: `folder` holds something else.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / SETTINGS).is_file() or not any(folder.iterdir()))):
        raise UserError(f"publish.folder={folder} holds something else than a published policy. Give another folder.")
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _fill(run, scratch, name, options)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fill(run: Trained, folder: Path, name: str, options: PublishConfig) -> None:
    for file in run.policy.iterdir():
        if file.suffix in _MODEL:
            shutil.copyfile(file, folder / file.name)
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{run.policy} has no safetensors with its weights, and pickles are not published.")
    tokenizer = AutoTokenizer.from_pretrained(run.policy)
    if tokenizer.chat_template is None:  # what it was trained with (policy/prompts.py)
        tokenizer.chat_template = PLAIN_TEMPLATE
        tokenizer.save_pretrained(folder)
    # Plain transformers end after 20 tokens unless told otherwise. Recommender has limits of its own.
    with suppress(OSError):  # a policy without the file keeps the defaults of transformers
        generation = GenerationConfig.from_pretrained(run.policy)
        generation.update(max_new_tokens=run.package.settings.max_completion_length, do_sample=False)
        generation.save_pretrained(folder)
    package = run.package if options.catalog else replace(run.package, catalog=None, fields={})
    write_package(folder, package)
    if (run.folder.path / FIGURE).is_file():
        (folder / FIGURE).parent.mkdir()
        shutil.copyfile(run.folder.path / FIGURE, folder / FIGURE)
    record = yaml.safe_dump(training_config(run.tree), sort_keys=False, allow_unicode=True)
    write_text(folder / "training" / "config.yaml", record)
    write_text(folder / "README.md", render(run, name, options, tokenizer))
