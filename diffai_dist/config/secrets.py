"""Credentials have no place in a configuration, which is versioned, mailed and shown: they are refused, never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffai_dist import storage
from diffai_dist.config.model import setting_paths
from diffai_dist.config.problems import Path, Problem, Rejected, quoted
from diffai_dist.config.thresholds import threshold_names
from diffai_dist.errors import UsageError
from diffai_dist.storage.urls import ALIASES, protocol

_REMEDY = (
    "set it in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), name a profile (storage.profile), or use "
    "the role of the machine"
)
_LOOKS = f"looks like a credential, and a configuration holds none: {_REMEDY}"
# Searched in a key without its punctuation: access_key, accessKeyId, X-Auth-Token.
_KEY = re.compile(
    "secret|token|passw|passphrase|credential|connectionstring|bearer|cookie|authorization|auth$|^(pwd|sas)"
    "|(access|account|api|private|shared|signing|ssh|storage)key|^keys?$"
)
# Values that their issuers made recognisable: AWS, GitHub, Hugging Face, Google, JSON web tokens, PEM.
_VALUE = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[opsu]_\w{20}|\bgithub_pat_\w{20}|\bhf_[A-Za-z]{20}|\bAIza[\w-]{35}"
    r"|\beyJ[\w-]{10,2000}\.eyJ|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_VARIABLE = re.compile(r"\$\{\w+\}")
# The assertions in front keep a megabyte without a space from being searched from each of its characters.
_URL = re.compile(r"(?<![\w+.:-])[\w+.:-]+://\S+")
_NAME = re.compile(r"(?<![\w.-])([\w.-]++)[\"']?\s*:")
# Of URLs that storage does not know, such as tcp://user:password@host.
_GRANT = re.compile(r"://[^/?#]*@|[?&#;][\w-]*(secret|token|sig|password|credential|key)[\w-]*=", re.IGNORECASE)


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Raise Rejected where a key or a value looks like a credential, whether or not the key is known."""
    if problems := list(_secrets(settings, ())):
        raise Rejected(problems)


def suspicious(text: str) -> bool:
    """Whether a text that cannot be parsed may hold a credential, so that no line of it should be shown."""
    return any(map(_names_secret, _NAME.findall(text))) or _why_secret(text) is not None


def _secrets(value: Any, path: Path) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if _names_secret(name) or _why_secret(name):
                key = "a key" if _why_secret(name) else quoted(name)
                yield Problem((*path, name), f"{key} {_LOOKS}", at_key=True, secret=True)
            else:
                yield from _secrets(inner, (*path, name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _secrets(inner, (*path, index))
    elif isinstance(value, str) and (reason := _why_secret(value)):
        yield Problem(path, reason, secret=True)


def _names_secret(name: str) -> bool:
    if any(path[-1] == name for path in setting_paths()) or name in threshold_names():  # ignore_keys_regex, key_file
        return False
    return bool(_KEY.search(re.sub(r"[\W_]", "", name).lower()))


def _why_secret(text: str) -> str | None:
    """Why a text holds a credential, or would if variables were expanded; None if it does not."""
    if _VALUE.search(text):
        return f"a value that {_LOOKS}"
    if _VARIABLE.search(text):
        return f"variables in ${{...}} are not expanded: write the value. If it is a credential, {_REMEDY}"
    return next(filter(None, map(_why_secret_url, _URL.findall(text))), None)


def _why_secret_url(url: str) -> str | None:
    name = protocol(url)
    if ALIASES.get(name, name) not in storage.BACKENDS:
        found = _GRANT.search(url)
        return f"a URL that {_LOOKS}" if found else None
    try:
        storage.check_url(url)
    except UsageError as error:
        return str(error)
    return None
