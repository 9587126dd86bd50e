"""Write texts as values of Hydra's overrides, without importing Hydra."""

import re

from reproduce.errors import UserError

PLAIN_TEXT = re.compile(r"[\w./-]+", re.ASCII)
"""What Hydra reads as it is, if it is no number."""
SURELY_TEXT = re.compile(r".*/|[A-Za-z]", re.ASCII)
RESERVED = ("null", "true", "false", "nan", "inf")
TEXT_KEYS = ("paths.data_root", "paths.results", "checkpoint")
"""Config keys of paths: their values are texts, whatever they look like."""


def hydra_quote(value: str) -> str:
    """Return a text as the value of a Hydra override, quoted if Hydra would read it as anything else.

    Raises `UserError` if it has `${`, which every config that holds it would read as a reference.
    """
    if "${" in value:
        raise UserError(
            f"{value!r} has a variable that no shell has expanded, and configs would read it as one of their keys: "
            "give the folder or file by its full path, which must not have ${ in it"
        )
    if PLAIN_TEXT.fullmatch(value) and SURELY_TEXT.match(value) and value.lower() not in RESERVED:
        return value
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"  # Hydra reads a backslash as itself unless it stands before a quote


def quote_paths(override: str) -> str:
    """Return an override whose value is a text if its key is one of `TEXT_KEYS`: `2012_07` is no number there."""
    key, _, value = override.partition("=")
    if key not in TEXT_KEYS or value == "null" or not PLAIN_TEXT.fullmatch(value):
        return override
    return f"{key}={hydra_quote(value)}"
