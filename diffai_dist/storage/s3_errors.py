"""What botocore and aiohttp raise, as errors of ours. Their messages are not passed on: they may hold signed URLs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

GONE = frozenset({"404", "NoSuchKey", "NoSuchVersion", "NotFound"})
EXISTS = frozenset({"412", "PreconditionFailed"})
UNSUPPORTED = frozenset({"501", "NotImplemented", "InvalidArgument", "InvalidRequest", "MethodNotAllowed", "405"})

_TRANSIENT = frozenset(
    "429 500 502 503 504 SlowDown Throttling ThrottlingException TooManyRequests RequestLimitExceeded "
    "BandwidthLimitExceeded InternalError InternalServerError ServiceUnavailable "
    "RequestTimeout BadGateway GatewayTimeout ConditionalRequestConflict OperationAborted".split()
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_WRONG_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthorizationHeaderMalformed"})
_FORBIDDEN = frozenset({"401", "403", "AccessDenied", "Forbidden", "AllAccessDisabled", "AccountProblem"})
_ELSEWHERE = frozenset({"301", "307", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong and what to do about it."""

    found: str
    hint: str = ""


def code_of(error: BaseException) -> str:
    """The S3 error code or HTTP status, "" for errors that no answer came with."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code if code and code != "Unknown" else str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed on a new connection."""
    import aiohttp
    import botocore.exceptions as botocore
    from botocore.parsers import ResponseParserError

    if isinstance(error, botocore.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code_of(error) in _TRANSIENT or status == 429 or 500 <= status != 501
    if isinstance(error, botocore.SSLError):
        return False
    lost = (
        botocore.HTTPClientError,
        botocore.ConnectionError,
        botocore.ResponseStreamingError,
        botocore.IncompleteReadError,
    )
    # An answer that is not S3's XML is the page of some proxy on the way.
    return isinstance(error, (*lost, ResponseParserError, aiohttp.ClientError, OSError, asyncio.TimeoutError))


def is_broken_connection(error: BaseException) -> bool:
    """Whether the connection was refused or broke before an answer came."""
    import botocore.exceptions as botocore

    return isinstance(error, (botocore.ConnectionClosedError, botocore.EndpointConnectionError))


def explain(error: BaseException, credentials: str) -> Finding:
    """The error in words; `credentials` says where they came from."""
    import botocore.exceptions as botocore

    code = code_of(error)
    if isinstance(error, botocore.ClientError):
        return _explain_answer(code, credentials, str(error))
    if isinstance(error, (botocore.NoCredentialsError, botocore.PartialCredentialsError)):
        return Finding(
            "no credentials were found",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role, or ask for anonymous access",
        )
    if isinstance(error, (botocore.ProfileNotFound, botocore.TokenRetrievalError, botocore.CredentialRetrievalError)):
        return Finding("the credentials could not be loaded", f"Check AWS_PROFILE, or log in again ({credentials})")
    if isinstance(error, botocore.ParamValidationError):
        return Finding("not a valid bucket or key name")
    if isinstance(error, (botocore.EndpointConnectionError, botocore.ConnectTimeoutError)):
        return Finding("the server cannot be reached", "Check the endpoint URL and the network")
    if isinstance(error, (botocore.ReadTimeoutError, asyncio.TimeoutError)):
        return Finding("the server stopped answering", "Run again; what was finished is kept")
    if isinstance(error, botocore.SSLError):
        return Finding("the server's certificate is not accepted", "Set AWS_CA_BUNDLE to the right authority")
    return Finding(f"the connection failed ({type(error).__name__})", "Run again; what was finished is kept")


def _explain_answer(code: str, credentials: str, message: str) -> Finding:
    if code in _EXPIRED:
        return Finding(f"the credentials have expired ({code})", f"Renew them ({credentials}) and run again")
    if code in _WRONG_KEY:
        return Finding(f"the credentials are not accepted ({code})", f"Used were {credentials}")
    if code == "RequestTimeTooSkewed":
        return Finding("the clock of this machine is wrong (RequestTimeTooSkewed)", "Set the clock and run again")
    if code.startswith("KMS.") or "kms:" in message.lower():
        return Finding(f"not allowed to decrypt the object ({code})", f"Grant kms:Decrypt on its key ({credentials})")
    if code in _FORBIDDEN:
        return Finding(
            f"access denied ({code})",
            f"Used were {credentials}; grant s3:GetObject and s3:ListBucket, and check that the object exists",
        )
    if code == "InvalidObjectState":
        return Finding("archived (InvalidObjectState)", "Restore it from the archive first")
    if code in _ELSEWHERE:
        return Finding(f"the bucket is in another region ({code})", "Set AWS_REGION, or the right endpoint URL")
    if code == "NoSuchBucket":
        return Finding("no such bucket", "Check the name of the bucket and the endpoint URL")
    if code in GONE:
        return Finding("no such object")
    if code in _TRANSIENT:
        return Finding(f"the server is overloaded or failing ({code})", "Run again; what was finished is kept")
    # An error code is the server's text: shown short and quoted.
    return Finding(f"the server refused the request ({code[:64]!r})")
