"""pip's configuration for uv, which does not read it: indexes, folders of wheels, certificates, proxies, timeouts."""

from __future__ import annotations

import ast
import os
import re
import subprocess

VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
}
"""uv's environment variable by pip's option, and what separates several values there; pip separates by white space."""
ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}
SECTIONS = ("global", "install", ":env:")
"""Sections of pip's configuration that apply to an installation; a later one replaces an earlier one."""


def settings(python: str) -> dict[str, str]:
    """Return the options of pip's configuration, of its files and its environment, as `python`'s pip sees them."""
    command = [python, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for section, option, value in re.findall(r"^(global|install|:env:)\.([\w-]+)=(['\"].*['\"])$", listed, re.M):
        found[section][ALIASES.get(option, option)] = str(ast.literal_eval(value))
    return {option: value for section in SECTIONS for option, value in found[section].items()}


def for_uv(options: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the environment variables and the arguments that tell uv what pip's options say.

    Variables that are set already keep their values.
    """
    variables = {
        name: separator.join(value.split())
        for option, (name, separator) in VARIABLES.items()
        if (value := options.get(option, "")).strip() and name not in os.environ
    }
    if options.get("no-cache-dir", "").lower() in ("1", "true", "yes", "on"):
        variables.setdefault("UV_NO_CACHE", "1")
    no_index = options.get("no-index", "").lower() in ("1", "true", "yes", "on")
    return variables, ["--no-index"] if no_index else []
