"""What went wrong in a request to S3, in one line: the key, the operation, the service's code and the fix."""

import errno
from typing import Any

from cloze.pipeline.core.errors import StorageError, TemporaryStorageError
from cloze.pipeline.core.retries import SETTING, TEMPORARY_STATUSES, Failure

_THROTTLING = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestThrottled",
    "RequestLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
    "BandwidthLimitExceeded",
    "429",
}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_TRY_AGAIN = {
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "IncompleteBody",
    "BadDigest",
}
_TRY_AGAIN |= {"ConditionalRequestConflict", "XAmzContentSHA256Mismatch"}
_KEPT = "run the same command again: what is finished is kept"
_DENIED = {"AccessDenied", "AllAccessDisabled"}  # of one key of several, without a status
#: Code, or status -> the cause and the fix.
_FIXES = {
    "InvalidAccessKeyId": ("the access key is not known there", "check AWS_ACCESS_KEY_ID or AWS_PROFILE"),
    "SignatureDoesNotMatch": ("the secret key is not that of the access key", "check AWS_SECRET_ACCESS_KEY"),
    "InvalidToken": ("the session token is not valid", "check AWS_SESSION_TOKEN, or unset it"),
    "RequestTimeTooSkewed": ("the clocks of this machine and of S3 differ", "set this machine's clock"),
    "InvalidObjectState": ("the object is archived", "restore it from its storage class, or copy it to another"),
    "NoSuchUpload": ("the unfinished upload was deleted meanwhile", _KEPT),
    "507": ("the store is full", f"free some space, then {_KEPT}"),
}


class CutBody(Exception):
    """A body is shorter than announced, or its bytes differ from its digest."""


def failure(error: Exception, seconds: float, operation: str, uri: str, *, renewable: bool) -> Failure:
    """Returns the description of a failed request, the first of which failed `seconds` ago.

    `renewable`: expired credentials are replaced by new ones without the user.
    """
    from botocore import exceptions as boto
    from urllib3.exceptions import HTTPError  # while a body is read, botocore passes most of them on

    long = f" for {seconds:.0f} s" if seconds >= 1 else ""
    later = f"{_KEPT}; {SETTING} is how long a request is repeated"

    def temporary(cause: str, detail: str = "", fix: str = later, *, unreachable: bool = False) -> Failure:
        text = f"{uri}: {operation} failed{long}: {cause}{f' ({detail})' if detail else ''}; {fix}"
        return Failure(TemporaryStorageError(text), cause, True, unreachable)

    def permanent(cause: str, fix: str) -> Failure:
        return Failure(StorageError(f"{uri}: {operation} failed: {cause}; {fix}"), cause, False)

    if isinstance(error, StorageError | FileNotFoundError):  # of a request inside this one
        return Failure(error, "", False)
    if isinstance(error, boto.ClientError):
        code, status = _code(error)
        answer = " ".join(dict.fromkeys(filter(None, (str(status or ""), code))))
        if code in _THROTTLING or (status == 503 and code in ("503", "")):
            return temporary("S3 is throttling", answer)
        if code in EXPIRED:
            fix = f"renew them, then {_KEPT}"
            if renewable:
                return temporary("the credentials have expired", answer, fix)
            return permanent(f"the credentials have expired ({answer})", fix)
        if status == 400 and has_no_code(error):  # of HEAD, for example with credentials that are renewed meanwhile
            return temporary("S3 refuses it without a reason", answer)
        if code in _TRY_AGAIN or status in TEMPORARY_STATUSES:
            return temporary("S3 has an internal error", answer)
        if known := _FIXES.get(code) or _FIXES.get(str(status)):
            return permanent(f"{known[0]} ({answer})", known[1])
        if code == "NoSuchBucket":
            return permanent(f"the bucket does not exist ({answer})", "create it, or correct its name")
        if status == 404:
            return Failure(FileNotFoundError(errno.ENOENT, "is missing", uri), "it is missing", False)
        if status == 412 or code == "PreconditionFailed":
            return permanent(f"it has changed meanwhile ({answer})", _KEPT)
        if status in (401, 403) or code in _DENIED:
            fix = "the credentials need permission to list, read, write and delete objects there"
            return permanent(f"access is denied ({answer})", fix)
        message = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
        return permanent(
            f"S3 refuses it ({answer}{message and ': '}{message})", "check AWS_REGION and AWS_ENDPOINT_URL"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
        return permanent("there are no credentials", f"set AWS_ACCESS_KEY_ID or AWS_PROFILE ({_line(error)})")
    still_expired = isinstance(error, RuntimeError) and "credentials are still expired" in str(error)
    if still_expired or isinstance(error, boto.CredentialRetrievalError | boto.MetadataRetrievalError):
        return temporary("the credentials cannot be renewed", _line(error))
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return permanent("the server's certificate is not trusted", f"set AWS_CA_BUNDLE ({_line(error)})")
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        fix = f"check AWS_ENDPOINT_URL, AWS_REGION and the network; {_KEPT}"
        return temporary("S3 cannot be reached", _line(error), fix, unreachable=True)
    if isinstance(error, boto.ReadTimeoutError):
        return temporary("S3 does not answer", _line(error))
    if isinstance(error, CutBody | boto.IncompleteReadError | boto.ResponseStreamingError | boto.FlexibleChecksumError):
        return temporary("the answer was cut or changed on the way", _line(error))
    if isinstance(error, boto.HTTPClientError | HTTPError | OSError) or type(error).__name__ == "ResponseParserError":
        return temporary("the connection was cut", _line(error))
    if isinstance(error, boto.BotoCoreError):
        return permanent(_line(error), "check AWS_REGION, AWS_ENDPOINT_URL and the credentials")
    return Failure(error, "", False)


def is_expired(error: Exception) -> bool:
    return _code(error)[0] in EXPIRED


def has_no_code(error: Exception) -> bool:
    """Returns whether the answer has a status that needs an explanation but no code, as that to HEAD."""
    code, status = _code(error)
    return status in (400, 401, 403) and code == str(status)


def _code(error: Exception) -> tuple[str, int | None]:
    """Returns the service's code and the HTTP status; both empty for other errors."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(response.get("Error", {}).get("Code", "")), status


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
