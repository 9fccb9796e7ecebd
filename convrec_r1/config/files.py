"""Where conf/ is, in a checkout and in an installed wheel, and short forms of the command line."""

from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]


def conf_folder() -> Path:
    """conf/ inside the package (a wheel), else beside it (a checkout or an editable install)."""
    inside = _HERE / "conf"
    return inside if inside.is_dir() else _HERE.parent / "conf"


def expand(arguments: Sequence[str]) -> list[str]:
    """`model=ID_OR_FOLDER` stands for `model=hub model.path=ID_OR_FOLDER`, for any id or folder conf/model does not name."""
    known = {path.stem for path in (conf_folder() / "model").glob("*.yaml")}
    result = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "model" and ("/" in value or "\\" in value) and "," not in value and value not in known:
            result += ["model=hub", f"model.path={value}", f"model.name={value.rstrip('/').rsplit('/', 1)[-1]}"]
        else:
            result.append(argument)
    return result
