"""Tell from its name whether an environment variable holds a secret: an API key, a token, a password."""

import re
from collections.abc import Mapping

_LEAST = 8
"""Characters of a secret. Shorter values would be found by chance."""
_ALWAYS = {"SECRET", "SECRETS", "PASSPHRASE", "PASSCODE", "CREDENTIAL", "CREDENTIALS", "PAT"}
_KEYS = {"KEY", "KEYS", "TOKEN"}
_NO_SECRET_BEFORE = {
    *("PUBLIC", "PUB", "PRIMARY", "FOREIGN", "SORT", "HOT", "CACHE", "PARTITION"),  # other keys
    *("BOS", "EOS", "PAD", "UNK", "MASK", "CLS", "SEP", "STOP", "END", "START", "MAX", "MIN", "NUM", "PER", "SPECIAL"),
}  # fmt: skip
_NO_SECRET_BEHIND = {
    *("ID", "IDS", "NAME", "ENV", "FILE", "FILES", "PATH", "DIR", "FOLDER", "URL", "URI", "HELPER", "COLUMN", "FIELD", "MAP"),
    *("TYPE", "SIZE", "LENGTH", "LIMIT", "LIMITS", "BUDGET", "COUNT", "COUNTS", "MODEL", "LEVEL", "CLASS", "COST", "PRICE"),
    *("TTL", "LIFETIME", "TIMEOUT", "RATE", "FORMAT", "VERSION", "PARALLELISM", "REPEAT", "BINDINGS"),
}  # fmt: skip


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret.

    Whole words decide: TOKENIZER_MODEL, KEYBOARD, MONKEY and MAX_TOKENS are none. A key or token is one unless the words
    around it say otherwise, as in PUBLIC_KEY, EOS_TOKEN, TOKEN_BUDGET and HF_TOKEN_PATH. PWD alone is the shell's folder.
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    words = [word.upper() for word in words if not word.isdigit()]
    for at, word in enumerate(words):
        before, behind = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
        glued = re.search(
            r"(?:API|ACCESS|SECRET|PRIVATE|AUTH)(?:KEY|TOKEN)$|PASSW(?:OR)?D$", word
        )  # WANDBAPIKEY, PGPASSWORD
        named = word in _ALWAYS or (word == "PWD" and before) or glued
        if (named or (word in _KEYS and before not in _NO_SECRET_BEFORE)) and behind not in _NO_SECRET_BEHIND:
            return True
    return False


def secrets_in(environment: Mapping[str, str], *more: str) -> dict[str, str]:
    """Return secret value -> name of the variable. more: names of variables that hold one whatever they are called."""
    names = [name for name in environment if name in more or is_secret(name)]
    return {environment[name]: name for name in names if len(environment[name]) >= _LEAST}


def holds(text: str, secret: str) -> bool:
    """Whether a text holds the secret, and not only a longer word with the same letters."""
    return re.search(rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])", text) is not None
