"""Find conf/ in a checkout or an installed wheel, and expand short forms of the command line."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore

_HERE = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def conf_folder() -> Path:
    """Return conf/ inside the package (a wheel), else beside it (a checkout or an editable install)."""
    inside = _HERE / "conf"
    return inside if inside.is_dir() else _HERE.parent / "conf"


def expand(arguments: Sequence[str]) -> list[str]:
    """Expand `model=VALUE` for a Hub id or a folder, if conf/model has no choice of this name.

    One value becomes `model=hub model.path=VALUE model.name=LAST_PART`. In a sweep each Hub id becomes a choice of the group,
    so ids and names of conf/model can be mixed: `-m model=tiny,Qwen/Qwen3-0.6B`.
    """
    known = {path.stem for path in (conf_folder() / "model").glob("*.yaml")}
    result = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "model" or not ("/" in value or "\\" in value) or value in known:
            result.append(argument)
        elif "," in value:
            for choice in filter(_HUB_ID.fullmatch, value.split(",")):
                owner, _, name = choice.partition("/")
                node = {"name": name, "path": choice}
                ConfigStore.instance().store(group=f"model/{owner}", name=name, node=node, package="model")
            result.append(argument)
        else:
            result += ["model=hub", f"model.path={value}", f"model.name={value.rstrip('/').rsplit('/', 1)[-1]}"]
    return result
