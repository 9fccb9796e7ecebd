"""Addresses of HTTP servers, as options give them."""

from urllib.parse import urlsplit


def address_problem(key: str, address: str, form: str) -> list[str]:
    """A sentence if `address` is no http(s) address or holds a password, which configs and logs would show.

    form: what an address looks like, for the message.
    """
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:  # a bad port or brackets
        return [f"{key}: not an address; give it as {form}."]
    if parts.username is not None or parts.password is not None:
        return [f"{key} holds a password, which configs and logs would show: use teacher.api_key_env or VLLM_API_KEY."]
    return [] if sound else [f"{key} has {address!r}: give it as {form}."]
