"""Check the addresses of HTTP servers in options."""

from urllib.parse import urlsplit


def address_problem(key: str, address: str, form: str) -> list[str]:
    """Return a message if `address` is not an http(s) address, or holds a password (configs and logs would show it).

    Args:
        key: the option's key, for the message.
        address: the option's value.
        form: an example of an address, for the message.
    """
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:  # a bad port or brackets
        return [f"{key}: not an address; give it as {form}."]
    if parts.username is not None or parts.password is not None:
        return [f"{key} holds a password, which configs and logs would show: use teacher.api_key_env."]
    return [] if sound else [f"{key} has {address!r}: give it as {form}."]
