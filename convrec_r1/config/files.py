"""Find conf/ in a checkout or an installed wheel, and expand short forms of the command line."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote as percent
from urllib.parse import unquote

from hydra.core.config_store import ConfigStore

from convrec_r1.config.quoting import as_text, readable, texts_of

_HERE = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SLASH = "%2F"
"""Encoded slash in the path of a folder that is one of several models of a sweep."""


def conf_folder() -> Path:
    """Return conf/ inside the package (a wheel), else beside it (a checkout or an editable install)."""
    inside = _HERE / "conf"
    return inside if inside.is_dir() else _HERE.parent / "conf"


def expand(arguments: Sequence[str]) -> list[str]:
    """Expand `model=VALUE` for a Hub id or a folder that is no choice of conf/model, and quote what Hydra cannot read.

    One value becomes `model=hub model.path=VALUE model.name=LAST_PART`. In a sweep each Hub id and each folder becomes a choice
    of the group, so they can be mixed with names of conf/model: `-m model=tiny,Qwen/Qwen3-0.6B,./mine`.

    Raises:
        UserError: an argument that cannot be read.
    """
    known = {path.stem for path in (conf_folder() / "model").glob("*.yaml")}
    result = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "model" or not ({"/", "\\"} & set(value) or _SLASH in value) or value in known:
            result.append(argument)
            continue
        models = [unquote(text) if _SLASH in text else text for text in texts_of(value)]
        if len(models) > 1:
            result.append(f"model={','.join(map(_choice, models))}")
        else:
            path = os.path.expanduser(models[0])
            name = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
            result += ["model=hub", f"model.path={as_text(path)}", f"model.name={as_text(name)}"]
    return readable(result)


def _choice(model: str) -> str:
    """Return a choice of the group `model`: a name of conf/model, a Hub id, or a folder, whose slashes are encoded."""
    path = os.path.expanduser(model)
    if not ("/" in path or "\\" in path) or (_HUB_ID.fullmatch(model) is None and not os.path.exists(path)):
        return model
    group, choice, node = "model", model, {"name": model.rpartition("/")[2], "path": model}
    if os.path.exists(path):
        folder = os.path.abspath(path)
        choice, node = percent(folder, safe=""), {"name": os.path.basename(folder), "path": folder}
    else:
        owner, _, _ = model.partition("/")
        group = f"model/{owner}"
    ConfigStore.instance().store(group=group, name=choice.rpartition("/")[2], node=node, package="model")
    return choice
