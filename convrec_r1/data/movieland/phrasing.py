"""Write the messages of a user from their taste, by a small grammar. They are short, as tiny models read them."""

from collections.abc import Sequence

import numpy as np

from convrec_r1.data.movieland import words
from convrec_r1.data.movieland.taste import Facets
from convrec_r1.data.schema import Message
from convrec_r1.lists import Item


def compose(seen: Sequence[Item], spoken: Facets, rng: np.random.Generator) -> tuple[Message, ...]:
    """Return one message, or user - assistant - user, that name the seen films and every spoken facet."""
    pick = _Picker(rng)
    titles = [str(item) if pick.chance(0.5) else item.title for item in seen]
    liked = _fill(pick.one(words.LIKED_ONE if len(titles) == 1 else words.LIKED_MANY), _join(titles))
    opening = pick.one(words.OPENINGS)
    closing = pick.one(words.CLOSINGS) if pick.chance(0.2) else ""
    if pick.chance(0.35):
        wish = _wish(spoken, words.ANSWER, pick)
        return (
            Message("user", _text([opening, liked, pick.one(words.ASK_ANYTHING)])),
            Message("assistant", pick.one(words.QUESTIONS)),
            Message("user", _text([*wish, closing])),
        )
    wish = _wish(spoken, words.ASK, pick)
    body = [liked, *wish] if pick.chance(0.7) else [*wish, liked]
    return (Message("user", _text([opening, *body, closing])),)


class _Picker:
    """Uniform choices from a buffer of random numbers: one call of the generator serves a whole conversation."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._numbers = iter(rng.random(64).tolist())

    def one(self, options: Sequence[str]) -> str:
        return options[int(next(self._numbers) * len(options))]

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability


def _wish(spoken: Facets, templates: Sequence[str], pick: _Picker) -> list[str]:
    """Return sentences that say every facet: one that asks for a film, then one for each facet that it leaves out."""
    extras = []
    forms = [words.GENRE_WORDS[genre][int(pick.chance(0.5)) % len(words.GENRE_WORDS[genre])] for genre in spoken.genres]
    if len(forms) == 2 and pick.chance(0.5):
        extras.append(_fill(pick.one(words.GENRE_EXTRA), forms.pop()[1]))
    wanted = " or ".join(one for one, _ in forms) or pick.one(("a film", "a movie", "something"))
    for position, theme in enumerate(spoken.themes):
        attached, plural = words.THEME_WORDS[theme]
        if position == 0 and pick.chance(0.75):
            wanted += " " + pick.one(attached)
        else:
            extras.append(_fill(pick.one(words.THEME_EXTRA), plural))
    if spoken.decade is not None:
        decade = _decade(spoken.decade, pick)
        if pick.chance(0.7):
            wanted += " " + decade
        else:
            extras.append(_fill(pick.one(words.DECADE_EXTRA), decade))
    if spoken.director is not None:
        extras.append(_fill(pick.one(words.DIRECTOR_EXTRA), spoken.director))
    if spoken.disliked is not None:
        extras.append(_fill(pick.one(words.DISLIKE), words.GENRE_WORDS[spoken.disliked][0][1]))
    if len(extras) > 1 and pick.chance(0.5):
        extras.reverse()
    return [_fill(pick.one(templates), wanted), *extras]


def _decade(decade: int, pick: _Picker) -> str:
    forms = [f"from the {decade}s", f"made in the {decade}s"]
    if decade in words.DECADE_WORDS:
        forms.append(f"from the {words.DECADE_WORDS[decade]}")
    return pick.one(forms)


def _join(titles: Sequence[str]) -> str:
    return titles[0] if len(titles) == 1 else ", ".join(titles[:-1]) + " and " + titles[-1]


def _fill(template: str, gap: str) -> str:
    """Return a sentence, capitalised. A title that ends in a full stop, as `Monsters, Inc.`, gets no second one."""
    text = template.format(gap)
    if gap[-1] in ".!?" and text.endswith(f"{gap}."):
        text = text[:-1]
    return text[0].upper() + text[1:]


def _text(parts: Sequence[str]) -> str:
    return " ".join(part for part in parts if part)
