"""Find secrets (API keys, tokens, passwords) in environment variables, by the names of the variables."""

import re
from collections.abc import Mapping

_LEAST = 8
"""Least number of characters of a secret. Shorter values would be found by chance."""
_ALWAYS = {"SECRET", "SECRETS", "PASSPHRASE", "PASSCODE", "CREDENTIAL", "CREDENTIALS", "PAT"}
_KEYS = {"KEY", "KEYS", "TOKEN"}
_NO_SECRET_BEFORE = {
    *("PUBLIC", "PUB", "PRIMARY", "FOREIGN", "SORT", "HOT", "CACHE", "PARTITION"),  # other keys
    *("BOS", "EOS", "PAD", "UNK", "MASK", "CLS", "SEP", "STOP", "END", "START", "MAX", "MIN", "NUM", "PER", "SPECIAL"),
}  # fmt: skip
_NO_SECRET_AFTER = {
    *("ID", "IDS", "NAME", "ENV", "FILE", "FILES", "PATH", "DIR", "FOLDER", "URL", "URI", "HELPER", "COLUMN", "FIELD", "MAP"),
    *("TYPE", "SIZE", "LENGTH", "LIMIT", "LIMITS", "BUDGET", "COUNT", "COUNTS", "MODEL", "LEVEL", "CLASS", "COST", "PRICE"),
    *("TTL", "LIFETIME", "TIMEOUT", "RATE", "FORMAT", "VERSION", "PARALLELISM", "REPEAT", "BINDINGS"),
}  # fmt: skip


def is_secret(name: str) -> bool:
    """Return whether an environment variable of this name holds a secret.

    Whole words decide: TOKENIZER_MODEL, KEYBOARD, MONKEY and MAX_TOKENS hold none. A key or token is a secret unless the words
    around it say otherwise, as in PUBLIC_KEY, EOS_TOKEN, TOKEN_BUDGET and HF_TOKEN_PATH. PWD alone is the shell's folder.
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    words = [word.upper() for word in words if not word.isdigit()]
    for at, word in enumerate(words):
        before, after = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
        glued = re.search(
            r"(?:API|ACCESS|SECRET|PRIVATE|AUTH)(?:KEY|TOKEN)$|PASSW(?:OR)?D$", word
        )  # WANDBAPIKEY, PGPASSWORD
        named = word in _ALWAYS or (word == "PWD" and before) or glued
        if (named or (word in _KEYS and before not in _NO_SECRET_BEFORE)) and after not in _NO_SECRET_AFTER:
            return True
    return False


def secrets_in(environment: Mapping[str, str], *more: str) -> dict[str, str]:
    """Return secret value -> name of the variable. more: names of variables that hold one whatever they are called."""
    names = [name for name in environment if name in more or is_secret(name)]
    return {environment[name]: name for name in names if len(environment[name]) >= _LEAST}


def holds(text: str, secret: str) -> bool:
    """Return whether a text contains the secret as a word of its own, not only inside a longer word."""
    return re.search(rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])", text) is not None
