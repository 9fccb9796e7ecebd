"""The year of an item, in the forms that people write it."""

import re

CENTURY = r"(?:1[89]|20)\d\d(?![\d%])"
"""A year, where no parentheses say that it is one."""
YEAR = re.compile(r"[(\uff08][\s*_]*(\d{4})[\s*_]*[)\uff09]")
OTHER_YEAR = re.compile(  # (1995 film) (film, 1995) (dir. X, 1995) (1999-2003) [1995] {1995}
    rf"[(\uff08\[{{](?:[^()\[\]]{{0,80}}[,;:]\s?|(?:the|film|movie|ca?\.|circa|released|tv series)\s+)?"
    rf"[*_]*(?P<year>{CENTURY})[*_]*(?:[\s,;:/\u2013\u2014-][^()\[\]]{{0,80}})?[)\uff09\]}}]",
    re.IGNORECASE,
)
_BARE_YEAR = re.compile(  # Heat - 1995, Heat, 1995; at the end or before a remark
    rf"(?:[\u2013\u2014|,;:\t]|(?<=\s)-|-(?=\s)|--)\s*[*_`\"'\u201c(\[]{{0,4}}(?P<year>{CENTURY})(?![\w.]\w|\w|[-\u2013/]\d)"
    rf"(?P<end>[*_`\"'\u201d)\]}},;.]*\s*$|[*_`\"'\u201d]{{0,3}}(?:\s*(?=[-\u2013\u2014|,;:.(\[\t])|\s+(?=[*_\"\u201c])))"
)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
DATE = re.compile(
    rf"(?:^|\W)(?:{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?|(?:^|\s(?:in|on|of|since|from|by|until|early|late|mid)\s){_MONTH})$",
    re.IGNORECASE,
)


def bare_year(text: str) -> re.Match[str] | None:
    """Return the first year after a dash or a comma; of years side by side the last: Fear Street - 1994 - 2021."""
    found = _BARE_YEAR.search(text)
    while found is not None and (following := _BARE_YEAR.match(text, found.end())) is not None:
        found = following
    return found
