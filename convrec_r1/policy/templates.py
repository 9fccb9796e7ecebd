"""Chat templates: their arguments, and a fixed date in place of today's."""

import logging
import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from convrec_r1.base.errors import UserError

_log = logging.getLogger(__name__)
_SUPPLIED = {
    *("messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"),
    *(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")),
    "additional_special_tokens",
}
"""Variables that transformers sets."""
_OPENS_A_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z")


def arguments(template: str, wanted: Mapping[str, Any], day: str) -> dict[str, Any]:
    """Return the keyword arguments with which a chat template is rendered.

    Args:
        template: the Jinja source.
        wanted: `model.template`.
        day: `model.date`. The template gets it from strftime_now, and as `date_string`.
    Raises:
        UserError: the template does not know a wanted argument, and its value is not false.
    """
    known = variables(template)
    if unknown := [name for name, value in wanted.items() if name not in known and value not in (False, None)]:
        offered = ", ".join(sorted(known - _SUPPLIED)) or "none"
        raise UserError(
            f"model.template.{unknown[0]}={wanted[unknown[0]]}: the model's chat template has no such variable. It has: "
            f"{offered}."
        )
    given = {name: value for name, value in wanted.items() if name in known}
    if "date_string" in known:
        given.setdefault("date_string", date.fromisoformat(day).strftime("%d %b %Y"))  # Llama's form
    if "strftime_now" in known:
        given["strftime_now"] = date.fromisoformat(day).strftime
    return given


@cache
def variables(template: str) -> frozenset[str]:
    """Return the variables that a chat template reads and does not set first. Empty for one that is no valid Jinja."""
    return frozenset(jinja2.meta.find_undeclared_variables(_parsed(template)))


def dated(template: str, day: str) -> str:
    """Return a chat template whose strftime_now gives `day`: for servers, which take no functions as arguments.

    Every format that the template passes as a literal is known. A format that it computes gives YYYY-MM-DD.
    """
    calls = _parsed(template).find_all(nodes.Call)
    named = [call for call in calls if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now"]
    if not named:
        return template
    formats = {a.value for call in named for a in call.args if isinstance(a, nodes.Const) and isinstance(a.value, str)}
    known = {form: date.fromisoformat(day).strftime(form) for form in sorted(formats)}
    return f"{{%- macro strftime_now(form) -%}}{{{{ {known!r}.get(form, {day!r}) }}}}{{%- endmacro %}}{{{{ '' }}}}{template}"


@cache
def warn_of_thoughts(prompt_end: str) -> None:
    """Warn, once, if a prompt ends by opening a thought: no argument switches it off."""
    if found := _OPENS_A_THOUGHT.search(prompt_end):
        _log.warning(
            "The chat template opens every reply with <%s>: the model thinks before it lists, and thoughts take tokens of "
            "model.max_completion_length. If model.template has no argument against it, choose an instruct model.",
            found[1],
        )


def _parsed(template: str) -> nodes.Template:
    # `generation` marks the assistant's part for transformers, and has no influence on variables.
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    try:
        return environment.parse(plain)
    except jinja2.TemplateSyntaxError:
        return nodes.Template([])
