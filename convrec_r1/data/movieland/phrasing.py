"""How film-lovers talk: a small grammar from a taste to messages. Short on purpose, since tiny models read it."""

from collections.abc import Sequence

import numpy as np

from convrec_r1.data.movieland.taste import Facets
from convrec_r1.data.schema import Message
from convrec_r1.lists import Item

# Genre -> (one of them, many of them), in one or two ways of saying it.
_GENRES: dict[str, tuple[tuple[str, str], ...]] = {
    "action": (("an action film", "action films"), ("an action movie", "action movies")),
    "adventure": (("an adventure film", "adventure films"), ("an adventure movie", "adventure movies")),
    "animation": (("an animated film", "animated films"), ("an animation", "animation films")),
    "comedy": (("a comedy", "comedies"), ("a funny comedy", "comedies")),
    "crime": (("a crime film", "crime films"), ("a crime movie", "crime movies")),
    "drama": (("a drama", "dramas"), ("a good drama", "dramas")),
    "family": (("a family film", "family films"), ("a movie for the whole family", "family movies")),
    "fantasy": (("a fantasy film", "fantasy films"), ("a fantasy movie", "fantasy movies")),
    "horror": (("a horror film", "horror films"), ("a horror movie", "horror")),
    "musical": (("a musical", "musicals"),),
    "mystery": (("a mystery", "mysteries"), ("a mystery film", "mysteries")),
    "romance": (("a romance", "romances"), ("a romantic film", "romantic films")),
    "science fiction": (("a science fiction film", "science fiction"), ("a sci-fi movie", "sci-fi movies")),
    "thriller": (("a thriller", "thrillers"), ("a tense thriller", "thrillers")),
    "war": (("a war film", "war films"), ("a war movie", "war movies")),
    "western": (("a western", "westerns"),),
}

# Theme -> (what follows "a film", the plural that follows "I like").
_THEMES: dict[str, tuple[tuple[str, ...], str]] = {
    "aliens": (("about aliens", "with aliens"), "stories with aliens"),
    "animals": (("about animals", "with animals"), "stories with animals"),
    "big city": (("set in a big city", "about life in the big city"), "big city stories"),
    "class divide": (("about rich and poor", "about the class divide"), "stories about the class divide"),
    "coming of age": (("about coming of age", "about growing up"), "coming of age stories"),
    "con artists": (("about con artists", "with con artists"), "con artists"),
    "conspiracy": (("about a conspiracy", "with a conspiracy"), "conspiracy plots"),
    "courtroom": (("set in a courtroom", "with courtroom scenes"), "courtroom scenes"),
    "detectives": (("about detectives", "with a detective"), "detective stories"),
    "dystopia": (("set in a dystopia", "about a dystopia"), "dystopias"),
    "family ties": (("about family ties", "about a family"), "family stories"),
    "friendship": (("about friendship", "about friends"), "stories of friendship"),
    "gangsters": (("about gangsters", "with gangsters"), "gangster stories"),
    "ghosts": (("about ghosts", "with ghosts"), "ghost stories"),
    "grief": (("about grief", "that deals with grief"), "stories about grief"),
    "heist": (("about a heist", "with a heist"), "heist plots"),
    "hitmen": (("about hitmen", "with a hitman"), "stories of hitmen"),
    "journalism": (("about journalism", "about journalists"), "stories about journalism"),
    "loneliness": (("about loneliness", "about lonely people"), "stories of loneliness"),
    "magic": (("with magic", "about magic"), "stories with magic"),
    "marriage": (("about marriage", "about a marriage"), "stories about marriage"),
    "memory": (("about memory", "about lost memory"), "stories that play with memory"),
    "monsters": (("with monsters", "about monsters"), "monsters"),
    "music": (("about music", "about musicians"), "stories about music"),
    "obsession": (("about obsession", "about an obsession"), "stories of obsession"),
    "politics": (("about politics", "about politicians"), "stories about politics"),
    "prison": (("set in a prison", "about prison"), "prison stories"),
    "revenge": (("about revenge", "with a revenge plot"), "revenge stories"),
    "road trip": (("about a road trip", "with a road trip"), "road trips"),
    "robots": (("about robots", "with robots"), "robots"),
    "school": (("set in a school", "about school"), "school stories"),
    "serial killer": (("about a serial killer", "with a serial killer"), "serial killer stories"),
    "show business": (("about show business", "set in show business"), "stories about show business"),
    "small town": (("set in a small town", "about a small town"), "small town stories"),
    "space": (("set in space", "about space"), "stories set in space"),
    "spies": (("about spies", "with spies"), "spy stories"),
    "sports": (("about sports", "with sports"), "stories about sports"),
    "superheroes": (("about superheroes", "with superheroes"), "superheroes"),
    "survival": (("about survival", "about people who must survive"), "survival stories"),
    "the sea": (("set at sea", "about the sea"), "stories of the sea"),
    "time travel": (("about time travel", "with time travel"), "time travel stories"),
    "treasure hunt": (("about a treasure hunt", "with a treasure hunt"), "treasure hunts"),
    "true story": (("based on a true story", "that is a true story"), "true stories"),
    "twist ending": (("with a twist ending", "that ends on a twist"), "twist endings"),
    "underdogs": (("about underdogs", "with an underdog"), "underdog stories"),
    "undercover": (("about someone undercover", "about going undercover"), "undercover stories"),
    "vampires": (("about vampires", "with vampires"), "vampires"),
}

_DECADE_WORDS = {
    1930: "thirties",
    1940: "forties",
    1950: "fifties",
    1960: "sixties",
    1970: "seventies",
    1980: "eighties",
    1990: "nineties",
}

_OPENINGS = (
    "Hi!",
    "Hello!",
    "Hey,",
    "Hi there,",
    "Movie night again.",
    "Good evening.",
    "A quick question.",
    "",
    "",
    "",
)
_LIKED_ONE = (
    "I loved {}.",
    "One of my favorites is {}.",
    "I just saw {} and it was great.",
    "I can watch {} again and again.",
    "I am a big fan of {}.",
    "Last week I watched {} and enjoyed it a lot.",
    "{} is exactly my kind of film.",
    "I still think about {}.",
    "Nothing beats {} for me.",
)
_LIKED_MANY = (
    "I loved {}.",
    "My favorites are {}.",
    "I just saw {} and they were great.",
    "I can watch {} again and again.",
    "I am a big fan of {}.",
    "Films I keep going back to: {}.",
    "{} are exactly my kind of films.",
    "I still think about {}.",
    "I have already seen {} and liked them a lot.",
)
_ASK = (
    "Can you recommend {}?",
    "I am looking for {}.",
    "What should I watch if I want {}?",
    "I am in the mood for {}.",
    "Any suggestions for {}?",
    "Tonight I want {}.",
    "Help me find {}.",
    "Do you know {}?",
    "I could use {}.",
    "What I need is {}.",
)
_ANSWER = (
    "I want {}.",
    "Maybe {}.",
    "Let's say {}.",
    "Ideally {}.",
    "I feel like {}.",
    "Best would be {}.",
    "I would like {}.",
)
_ASK_ANYTHING = (
    "What should I watch next?",
    "Can you recommend something?",
    "I need my next film.",
    "Any suggestions?",
    "What else would I like?",
    "Help me pick a film for tonight.",
)
_QUESTIONS = (
    "Sure! What are you in the mood for?",
    "Nice taste. Any genre or topic you prefer?",
    "Good choice. What should it be about?",
    "Happy to help. What kind of film?",
    "Tell me more: what do you like in a film?",
    "Of course. Any wishes?",
)
_THEME_EXTRA = ("I like {}.", "I never get tired of {}.", "I have a weakness for {}.", "Also, I enjoy {}.")
_GENRE_EXTRA = ("I like {} too.", "{} are fine too.", "I also enjoy {}.")
_DIRECTOR_EXTRA = (
    "I admire {}.",
    "{} is my favorite director.",
    "I like everything {} has made.",
    "Films by {} usually work for me.",
)
_DECADE_EXTRA = ("Preferably {}.", "Ideally {}.", "Best if it is {}.")
_DISLIKE = ("No {}, please.", "I don't like {}.", "Please skip {}.", "Anything but {}.", "I can't stand {}.")
_CLOSINGS = ("Thanks!", "Any ideas?", "Thank you.")


def compose(seen: Sequence[Item], spoken: Facets, rng: np.random.Generator) -> tuple[Message, ...]:
    """One message, or user - assistant - user, that name the seen films and every spoken facet."""
    pick = _Picker(rng)
    titles = [str(item) if pick.chance(0.5) else item.title for item in seen]
    liked = _fill(pick.one(_LIKED_ONE if len(titles) == 1 else _LIKED_MANY), _join(titles))
    opening = pick.one(_OPENINGS)
    closing = pick.one(_CLOSINGS) if pick.chance(0.2) else ""
    if pick.chance(0.35):
        wish = _wish(spoken, _ANSWER, pick)
        return (
            Message("user", _text([opening, liked, pick.one(_ASK_ANYTHING)])),
            Message("assistant", pick.one(_QUESTIONS)),
            Message("user", _text([*wish, closing])),
        )
    wish = _wish(spoken, _ASK, pick)
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
    """Sentences that say every facet: one that asks for a film, and further ones for what it leaves out."""
    extras = []
    forms = [_GENRES[genre][int(pick.chance(0.5)) % len(_GENRES[genre])] for genre in spoken.genres]
    if len(forms) == 2 and pick.chance(0.5):
        extras.append(_fill(pick.one(_GENRE_EXTRA), forms.pop()[1]))
    wanted = " or ".join(one for one, _ in forms) or pick.one(("a film", "a movie", "something"))
    for position, theme in enumerate(spoken.themes):
        attached, plural = _THEMES[theme]
        if position == 0 and pick.chance(0.75):
            wanted += " " + pick.one(attached)
        else:
            extras.append(_fill(pick.one(_THEME_EXTRA), plural))
    if spoken.decade is not None:
        decade = _decade(spoken.decade, pick)
        if pick.chance(0.7):
            wanted += " " + decade
        else:
            extras.append(_fill(pick.one(_DECADE_EXTRA), decade))
    if spoken.director is not None:
        extras.append(_fill(pick.one(_DIRECTOR_EXTRA), spoken.director))
    if spoken.disliked is not None:
        extras.append(_fill(pick.one(_DISLIKE), _GENRES[spoken.disliked][0][1]))
    if len(extras) > 1 and pick.chance(0.5):
        extras.reverse()
    return [_fill(pick.one(templates), wanted), *extras]


def _decade(decade: int, pick: _Picker) -> str:
    forms = [f"from the {decade}s", f"made in the {decade}s"]
    if decade in _DECADE_WORDS:
        forms.append(f"from the {_DECADE_WORDS[decade]}")
    return pick.one(forms)


def _join(titles: Sequence[str]) -> str:
    return titles[0] if len(titles) == 1 else ", ".join(titles[:-1]) + " and " + titles[-1]


def _fill(template: str, words: str) -> str:
    """The sentence, without a second full stop behind a title such as `Monsters, Inc.`; it begins with a capital."""
    text = template.format(words)
    if words[-1] in ".!?" and text.endswith(f"{words}."):
        text = text[:-1]
    return text[0].upper() + text[1:]


def _text(parts: Sequence[str]) -> str:
    return " ".join(part for part in parts if part)
