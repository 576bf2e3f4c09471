"""Passwords of database URLs: never kept, shown or logged."""

import re
from typing import Any

_PASSWORDS = (
    (re.compile(r"(://[^\s:/@]*):\S*@"), r"\1:***@"),
    (re.compile(r"([?&][^=\s&]*password[^=\s&]*=)[^&\s]*", re.IGNORECASE), r"\1***"),
)
"""In the text of somebody else's, a traceback for example."""
NO_URL = "(no URL)"


def without_password(url: str) -> str:
    """As far as it can be read as one; what cannot may hold a password anywhere, so nothing of it is shown."""
    from sqlalchemy.engine import URL

    known = _database(url)
    if known is None or "@" in (known.host or ""):  # an @ of a password that is not quoted
        return NO_URL
    query = {k: v for k, v in known.query.items() if "password" not in k}
    shown = URL.create(known.drivername, known.username, None, known.host, known.port, known.database, query)
    return shown.render_as_string()


def has_password(url: str) -> bool:
    known = _database(url)
    return known is not None and (known.password is not None or any("password" in k for k in known.query))


def _database(url: str) -> Any:
    """SQLAlchemy's reading of it; None where it is no URL."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        return None


def masked(text: str) -> str:
    """A text in which URLs may stand anywhere."""
    for pattern, told in _PASSWORDS:
        text = pattern.sub(told, text)
    return text
