"""URLs as users write them: which are accepted, what may be shown of them. Nothing here opens anything."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from diffai_dist.errors import UsageError

PROTOCOLS = ("file", "s3", "gs", "abfs", "abfss", "az", "hf", "http", "https", "memory")
ALIASES = {"s3a": "s3", "gcs": "gs"}

# Query parameters that grant access by themselves: presigned S3 and GCS URLs, Azure SAS, bearer tokens.
_GRANTS = frozenset(
    "x-amz-signature x-amz-security-token x-amz-credential awsaccesskeyid signature x-goog-signature x-goog-credential "
    "googleaccessid sig token access_token id_token auth authorization api_key apikey key secret password "
    "key-pair-id policy".split()
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HIDDEN = "***"


def protocol(url: str) -> str:
    """The protocol of a URL, "file" for a plain path."""
    found = _SCHEME.match(url)
    return found[1].lower() if found else "file"


def is_remote(url: str) -> bool:
    """Whether the object lies anywhere else than in the local file system."""
    return protocol(url) != "file"


def check_url(url: str) -> str:
    """The canonical form of a URL or path: absolute path for local ones, no trailing slash.

    Refused: protocols outside the allow-list, chained URLs, and URLs that hold a credential, since URLs end up in
    reports, logs and task names.
    """
    url = os.fspath(url)
    if not url or "\0" in url:
        raise UsageError(f"{redact(url)!r} is not a URL or path: it is empty or holds a NUL byte")
    if "::" in url:
        raise UsageError(f"{redact(url)!r} is a chained URL ('::'): name the object itself")
    scheme = ALIASES.get(protocol(url), protocol(url))
    if scheme not in PROTOCOLS:
        raise UsageError(
            f"{redact(url)!r}: the protocol {scheme!r} is not supported, use one of {', '.join(PROTOCOLS)}"
        )
    if scheme == "file":
        return _path(url)
    _refuse_credentials(url)
    rest = url[url.index("://") + 3 :]
    if not rest.strip("/"):
        raise UsageError(f"{redact(url)!r} names no bucket, host or folder")
    if rest.startswith("/") and scheme != "memory":
        raise UsageError(f"{redact(url)!r} names no bucket or host: remove the third slash")
    # A trailing slash means something to HTTP servers only; elsewhere it would give one folder two names.
    return f"{scheme}://{rest}" if scheme in ("http", "https") else f"{scheme}://{rest.rstrip('/')}"


def redact(url: str) -> str:
    """What may be shown of a URL: no user information, and no query of a remote one."""
    if "::" in url:
        return "::".join(redact(part) for part in url.split("::"))
    if not is_remote(url):
        return url
    scheme, _, rest = url.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0] if scheme.lower() != "hf" else rest.partition("?")[0]
    if _has_userinfo(url):
        # A secret may hold slashes, so all up to the last @ goes, and all where there is none.
        rest = f"{_HIDDEN}@{rest.rpartition('@')[2]}" if "@" in rest else _HIDDEN
    return f"{scheme}://{rest}"


def join(url: str, name: str) -> str:
    """The URL of `name`, which may have several parts, in the directory `url`; it cannot leave the directory."""
    if not name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise UsageError(f"{name[:256]!r} is not a name inside of {redact(url)}")
    if protocol(url) in ("http", "https"):
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{quote(name)}", "", ""))
    return f"{url.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The directory that holds the object; a bucket, a host and the root are their own parents."""
    head, _, tail = url.rstrip("/").rpartition("/")
    if not is_remote(url):
        return head or "/"
    return head if tail and not head.endswith(":/") else url


def basename(url: str) -> str:
    """The last part of the URL."""
    return url.rstrip("/").rpartition("/")[2]


def _path(url: str) -> str:
    found = _SCHEME.match(url)
    if not found:
        return os.path.abspath(url)
    host, slash, rest = url[found.end() :].partition("/")
    if not slash or host not in ("", "localhost"):
        raise UsageError(f"{url!r} names a host: write file:///absolute/path, or just the path")
    path = unquote("/" + rest)
    if "\0" in path:
        raise UsageError(f"{url!r} holds a NUL byte")
    return os.path.abspath(path)


def _refuse_credentials(url: str) -> None:
    if _has_userinfo(url):
        raise UsageError(
            f"{redact(url)!r} holds credentials: leave them out of the URL and set them in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role)"
        )
    if _grants(url):
        raise UsageError(
            f"{redact(url)!r} is a presigned or token URL, which is itself a credential: name the object as "
            "s3://, gs://, az:// or hf:// and let each machine use its own credentials"
        )


def _has_userinfo(url: str) -> bool:
    """Whether the part before the path holds user information, or a secret with a slash that only looks like a path."""
    scheme = protocol(url)
    netloc = re.split(r"[/?#]", url[url.index("://") + 3 :], maxsplit=1)[0]
    name, colon, port = netloc.rpartition(":")
    if colon and not (scheme in ("http", "https") and (port.isdecimal() or netloc.endswith("]")) and "@" not in name):
        return True
    # container@account.dfs.core.windows.net and repository@revision name places, not users.
    return "@" in netloc and scheme not in ("abfs", "abfss", "az", "hf")


def _grants(url: str) -> bool:
    """Whether a query or fragment parameter grants access."""
    _, mark, query = url.partition("?")
    query = query if mark else url.partition("#")[2]
    pairs = parse_qsl(re.sub(r"[?#;]", "&", query), keep_blank_values=True)
    return any(name.strip().lower() in _GRANTS for name, _ in pairs)
