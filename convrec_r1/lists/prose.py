"""Tell sentences from items."""

import re

from convrec_r1.lists.years import YEAR

MOST_WORDS = 14
"""Words of the longest title: Don't Be a Menace to South Central While Drinking Your Juice in the Hood."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PROSE = _words(
    "you your my i we they me them it's that's there's there this those some any is are was were am be been has have"
    " had haven't do does did don't didn't will would can could should might may see seen saw watch watched watching"
    " think thought liked loved enjoy enjoyed hear heard recommend recommended suggest suggested suggestions looking"
    " look looks try prefer released came made called about movie movies film films comedies also really very too just"
    " maybe actually probably definitely always never ever yet something anything another good great new old cool"
    " classic classics favorite favourite favorites similar sure yes yeah okay ok well so how what which here want"
    " know mood horror scary funny original sequel remake both even all again"
)
"""Words of prose. In lower case they are in 1 of 25,000 titles of our samples, and in most utterances."""
_STARTS = _words(
    "also and another any anything are because but can cool could did do does great haha has have he hello hey hi how"
    " i i'd i'm i've if in is it it's lol maybe me my nice no not oh ok okay one or she so some something sure thanks"
    " that that's then there there's they this was we well were what would yeah yes you"
)
"""First words of sentences."""
SPOKEN = re.compile(
    r"(?:^|[.!?,]\s)(?:I|We|They|He|She|I['\u2019](?:m|ve|d|ll))\s(?!(?:and|or|of|in|on|to|the|a|at|for|with|vs|from|by)\s)[a-z]"
    r"|[a-z\d]{3}[.!?] +[A-Z]\w* [a-z]"
    r"|^(?:or|and|but|like|maybe|yes|yeah|ok|i|is)[\s,.]"
    r"|^(?i:or|also|okay|wow|how about|(?:some|any)thing(?: more)? like)\b(?!:)"
)
"""Beginning of a sentence."""
_EMPHASIS = tuple('*_`"\u201c[')
_FOLLOWS = re.compile(r"\s+(?!(?:directed|dir|by|starring|with|featuring|from|film|movie)\b)[a-z'\u2019]")


def is_prose(before: str, after: str, *, loose: bool) -> bool:
    """Return whether a line without a list marker is a sentence that mentions an item, or a year.

    Args:
        before, after: The line before and after its year.
        loose: The year is not in brackets.
    """
    if _FOLLOWS.match(after):
        return True
    if before[:1] in _EMPHASIS:
        return False
    if SPOKEN.search(before):
        return True
    end = after.rstrip("*_ \"'\u201d")
    if end.endswith((":", "?")) or (loose and (end == "." or (end[:1] in (",", ";") and len(end) > 1))):
        return True
    spoken = prose_words(before)
    # A title in sentence case may have such a word: a line without anything after the year is doubted less.
    if spoken and (loose or end or spoken > 2 or before.split()[0].strip(",.!").casefold() in _STARTS):
        return True
    if (YEAR.search(after) or after.lstrip()[:1].isalpha()) and prose_words(after):
        return True
    return (loose or bool(end)) and before.count(" ") >= (MOST_WORDS if loose else 2 * MOST_WORDS)


def prose_words(text: str) -> int:
    """Return how many words of prose a text has."""
    return sum(word.rstrip(",.!?") in _PROSE for word in text.replace("\u2019", "'").split())
