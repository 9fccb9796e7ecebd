"""Build what a config names by `_target_`: the project's own classes and a user's, in the same way.

A node is a mapping with `_target_`, the import path of a class or a function, and its options. The class takes the options as
keyword arguments, or all of them as one dataclass: a parameter `options` annotated with it. What the project passes besides
(a policy, a catalog) is listed at each slot in docs/extend.md.
"""

import inspect
import logging
import sys
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, TypeVar

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from convrec_r1.base.errors import UserError

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it would print what `locate` reports
T = TypeVar("T")
TARGET = "_target_"
PACKAGE = "convrec_r1"


def build(node: Any, key: str, kind: type[T] | None = None, *, function: bool = False, **given: Any) -> T:
    """Build the object that `node` names.

    Args:
        node: `_target_` and options: a mapping, a DictConfig or an options dataclass with a field `_target_`.
        key: the node's key in the config, for messages.
        kind: a class, or a protocol checked at run time, that the object must fit.
        function: a function may stand in for the object: its options are bound, and it is called later.
        given: what the project passes besides the options. A class or function gets those that it has parameters for.
    Raises:
        UserError: the target cannot be imported, an option is unknown, missing or of a bad type, or the object does not fit.
    """
    options = plain(node)
    path, partial = options.pop(TARGET, None), options.pop("_partial_", False)
    if not path:
        raise UserError(f"{key} has no {TARGET}: name a class, as {key}.{TARGET}=my_package.MyClass.")
    target = locate(path, key)
    parameters = _parameters(target)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    passed = {name: value for name, value in given.items() if takes_all or name in parameters}
    schema = _schema(target)
    known = {f.name for f in fields(schema)} if schema else parameters
    if "name" not in known and not takes_all:
        options.pop("name", None)  # the choice's own name, for folders and reports
    if schema is not None:
        arguments: dict[str, Any] = {"options": _typed(schema, options, path, key)}
    else:
        unknown = [name for name in options if not takes_all and name not in parameters]
        if unknown:
            taken = ", ".join(name for name in parameters if name not in given) or "none"
            raise UserError(f"{key}.{unknown[0]}: {path} takes no such option; it takes: {taken}.")
        arguments = options
    partial = partial or (function and inspect.isfunction(target))
    settings = {TARGET: path, "_partial_": partial, "_convert_": "object", "_recursive_": False}
    try:
        made = instantiate(settings, **arguments, **passed)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{key}: {path} could not be built: {type(cause).__name__}: {cause}") from error
    if kind is not None and not isinstance(made, kind):
        wanted = ", ".join(name for name in dir(kind) if not name.startswith("_")) or "a call"
        raise UserError(f"{key}.{TARGET}={path}: not a {kind.__name__}, which has: {wanted}. See docs/extend.md.")
    return typing.cast(T, made)


def locate(path: str, key: str) -> Any:
    """Import the class or function at `path`. Raises UserError that names the key and says what failed."""
    try:
        return get_object(path)
    except Exception as error:  # code of the user's is imported: anything may be raised
        cause = error.__cause__ or error
        raise UserError(
            f"{key}.{TARGET}={path}: cannot be imported ({type(cause).__name__}: {cause}). Its module must be on Python's "
            "path: start in the folder that holds it, install it, or set PYTHONPATH."
        ) from error


def targets(tree: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> import path of every `_target_` in a config tree."""
    found: dict[str, str] = {}
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name == TARGET and isinstance(value, str):
                found[prefix[:-1]] = value
            else:
                found |= targets(value, f"{prefix}{name}.")
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            found |= targets(value, f"{prefix}{number}.")
    return found


def is_own(path: str) -> bool:
    """Whether an import path lies in this package."""
    return path == PACKAGE or path.startswith(f"{PACKAGE}.")


def source_digests(tree: Any) -> dict[str, str]:
    """Import path -> digest of its source file, for every `_target_` outside this package.

    A run's identity includes them: a changed reward makes another run. What has no file (a compiled module) counts by name.
    """
    digests = {}
    for path in sorted({path for path in targets(tree).values() if not is_own(path)}):
        file = _source(path)
        digests[path] = blake2b(file.read_bytes(), digest_size=8).hexdigest() if file else ""
    return digests


def plain(node: Any) -> dict[str, Any]:
    """A node as a mapping of plain values, enums kept."""
    if isinstance(node, DictConfig):
        return {str(k): v for k, v in (typing.cast(dict, OmegaConf.to_container(node, resolve=True)) or {}).items()}
    if is_dataclass(node):
        return {f.name: getattr(node, f.name) for f in fields(node)}
    return dict(typing.cast(Mapping[str, Any], node) or {})


def _source(path: str) -> Path | None:
    """Return the file of the longest module in `path`. Nothing is imported, in contrast to `importlib.util.find_spec`."""
    name, folders, file = "", list(sys.path), None
    for part in filter(None, path.split(".")):
        name = f"{name}.{part}".lstrip(".")
        spec = _spec(name, folders)
        if spec is not None and spec.origin and Path(spec.origin).is_file():
            file = Path(spec.origin)
            if spec.submodule_search_locations is None:  # a module: what follows is inside it
                break
            folders = list(spec.submodule_search_locations)
        else:  # a folder without __init__.py, or nothing
            folders = [str(inner) for folder in folders if (inner := Path(folder or ".") / part).is_dir()]
    return file


def _spec(name: str, folders: list[str]) -> ModuleSpec | None:
    try:
        return next(filter(None, (finder.find_spec(name, folders) for finder in sys.meta_path)), None)
    except KeyError:  # a folder without __init__.py: Python's finder asks for the package above it, imported
        return None


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    if inspect.isclass(target) and target.__init__.__name__ == "_no_init_or_replace_init":
        return {}  # a subclass of a Protocol without a constructor of its own: typing's stand-in claims to take anything
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have none
        return {}


def _schema(target: Any) -> type | None:
    """The dataclass that `target` takes its options as."""
    if "options" not in _parameters(target):
        return None
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # annotations of the user's that cannot be evaluated
        return None
    schema = hints.get("options")
    return schema if isinstance(schema, type) and is_dataclass(schema) else None


def _typed(schema: type, options: Mapping[str, Any], path: str, key: str) -> Any:
    try:
        typed = OmegaConf.structured(schema)
        names = {f.name for f in fields(schema)}
        given = {TARGET: path} if TARGET in names else {}
        merged = OmegaConf.merge(typed, {**options, **given})
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]} ({schema.__name__}).") from None
