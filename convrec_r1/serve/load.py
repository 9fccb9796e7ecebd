"""Find a policy with its package, and start the session that answers with it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Literal

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from convrec_r1.base.errors import UserError
from convrec_r1.data.catalog import Catalog
from convrec_r1.matching import Matching
from convrec_r1.policy.config import ModelConfig
from convrec_r1.policy.load import load_policy
from convrec_r1.rollout.config import HFConfig, RolloutConfig, VLLMConfig, choose_engine, vllm_version
from convrec_r1.rollout.constraint import Constraint
from convrec_r1.run.checkpoints import policy_path, require_whole, run_of
from convrec_r1.run.folder import RunFolder
from convrec_r1.serve.fields import read_catalog
from convrec_r1.serve.hf import HFStepper
from convrec_r1.serve.package import CATALOG, SETTINGS, Package, Settings, read_package, settings_of
from convrec_r1.serve.planner import Planner, longest
from convrec_r1.serve.reader import Known
from convrec_r1.serve.session import Session
from convrec_r1.serve.stepper import Stepper

_log = logging.getLogger(__name__)
Engine = Literal["auto", "hf", "vllm"]
LONGEST = 1 << 20
"""Tokens of prompt and list for models that know no limit."""
_SHARE = 0.85
"""Of a GPU's memory, where vLLM has it for itself."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_session(
    path: str | Path,
    *,
    engine: Engine | RolloutConfig = "auto",
    constraint: Literal["catalog", "none"] = "catalog",
    catalog: str | Path | Catalog | None = None,
    match: Matching | None = None,
    device: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    limit: int = 256,
) -> Session:
    """Load a policy and start its engine. Arguments and errors as for `Recommender.load`."""
    import torch

    if constraint not in ("catalog", "none"):
        raise UserError(f"constraint={constraint!r}: choose catalog or none.")
    options = engine_options(engine, on_cpu=device == "cpu")
    found = policy_path(str(path))
    if isinstance(found, Path):
        require_whole(found.parent)
    else:
        _require_on_hub(found, revision)
    package = _package(path, found, revision)
    known = _known(package, path, catalog, match, constraint)
    policy = load_policy(found, ModelConfig(name="policy", dtype=dtype, revision=revision))
    held = None
    if constraint == "catalog":
        assert known.catalog is not None  # see _known
        held = Constraint.of(known.catalog, known.match, policy)
    settings = package.settings
    window = getattr(policy.causal_lm.config, "max_position_embeddings", None) or LONGEST
    if isinstance(options, VLLMConfig):
        from convrec_r1.serve.vllm import VLLMStepper  # imported late: vLLM is optional

        # Its memory is planned for this length: room for twice the lines that the policy was trained for.
        window = min(window, settings.max_prompt_length + longest(2 * settings.n, settings, held))
        stepper: Stepper = VLLMStepper(options, policy, held, max_length=window)
    else:
        policy = policy.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        stepper = HFStepper(policy, held, capacity=options.batch_size)
    return Session(Planner(policy, settings, known, held, window), stepper, limit=limit)


def engine_options(engine: Engine | RolloutConfig, *, on_cpu: bool = False) -> HFConfig | VLLMConfig:
    """Return the options of an engine that is given by its name. Raises UserError for an unknown one."""
    if isinstance(engine, RolloutConfig):
        options = choose_engine(engine, gpu=False if on_cpu else None)[0]
    elif engine == "auto":
        options = choose_engine(RolloutConfig(), gpu=False if on_cpu else None)[0]
    elif engine in ("hf", "vllm"):
        options = HFConfig() if engine == "hf" else VLLMConfig(memory_fraction=_SHARE)
    else:
        raise UserError(f"engine={engine!r}: choose auto, hf or vllm.")
    if isinstance(options, VLLMConfig) and vllm_version() is None:
        raise UserError("engine=vllm needs vLLM, which is not installed (docs/install.md). Use engine=hf.")
    if not isinstance(options, (HFConfig, VLLMConfig)):
        raise UserError(f"{options._target_} cannot write lists token by token: use rollout=hf or rollout=vllm here.")
    return options


def _package(path: str | Path, policy: str | Path, revision: str | None) -> Package:
    """Return the package of a policy: beside its weights, else of its run. Without one, it has settings only."""
    if not isinstance(policy, Path):
        found = _from_hub(policy, revision)
    else:
        run = run_of(str(path)) or run_of(str(policy))
        found = read_package(policy) or (read_package(RunFolder(run).package) if run else None)
        if found is None and run is not None:
            found = Package(_settings_of_run(run))
    if found is None:
        _log.warning(
            "%s has no %s, so it is asked with the settings of the defaults: %d items, our instruction. A run of this package, "
            "or what task=publish writes, has its own.",
            policy, SETTINGS, Settings.n,
        )  # fmt: skip
    return found or Package(Settings())


def _settings_of_run(run: Path) -> Settings:
    file = RunFolder(run).config
    try:
        return settings_of(OmegaConf.to_container(OmegaConf.load(file)))  # pyright: ignore[reportArgumentType]
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the config of a run ({str(error).splitlines()[0]}).") from error


def _from_hub(name: str, revision: str | None) -> Package | None:
    folder = None
    for file in (SETTINGS, CATALOG):
        try:
            folder = Path(hf_hub_download(name, file, revision=revision)).parent
        except (EntryNotFoundError, LocalEntryNotFoundError):
            break
    return None if folder is None else read_package(folder)


def _require_on_hub(name: str, revision: str | None) -> None:
    """Check that a name that is no policy's folder is a model of the Hub."""
    if Path(name).expanduser().exists():
        raise UserError(f"{name} holds no policy: there is no config.json in it, nor in checkpoints/last/policy.")
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{name}: no such folder. Give a run's folder, a policy's folder, or a Hub id (ORG/NAME).")
    try:
        hf_hub_download(name, "config.json", revision=revision)
    except (OSError, ValueError) as error:  # no connection, no such model, no permission
        raise UserError(
            f"{name} is no folder here, and cannot be read from the Hub: {str(error).splitlines()[0]}\n"
            "Check the name and the network. Gated models need `hf auth login`. Without a network, download the model "
            "elsewhere (`hf download ORG/NAME --local-dir DIR`) and give its folder."
        ) from error


def _known(
    package: Package,
    path: str | Path,
    catalog: str | Path | Catalog | None,
    match: Matching | None,
    constraint: str,
) -> Known:
    rule = match or package.settings.matching()
    if isinstance(catalog, Catalog):
        return Known(catalog, rule, {item: {"tag": tuple(sorted(tags))} for item, tags in catalog.metadata.items()})
    if catalog is not None:
        items, fields = read_catalog(Path(catalog).expanduser())
        return Known(items, rule, fields)
    if package.catalog is None and constraint == "catalog":
        raise UserError(
            f"{path} has no catalog beside it, which the constraint needs. Give catalog=FILE (CSV, JSON and others: "
            "docs/data.md), or constraint=none to let the policy write what it likes."
        )
    return Known(package.catalog, rule, package.fields)
