"""Errors: one class for each kind of failure, with the fields that the service reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "tessera"
"""Domain of the service in `google.rpc.ErrorInfo`."""

_DETAILS = "grpc-status-details-bin"
_MAX_TEXT = 1000


def sanitize(text: str) -> str:
    """The text of a server without control characters, cut to 1000 characters."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text[:_MAX_TEXT])
    return shown + "…" if len(text) > _MAX_TEXT else shown


class TesseraError(Exception):
    """A failure.

    Attributes:
        kind: Name of the kind of error in the service, such as `invalid_argument`.
        fields: Fields of the error by name, as the service sent them.
        retry_after: Seconds after which the same call may succeed; None if the server did not say so.
    """

    default_kind: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        fields: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind or self.default_kind
        self.fields = dict(fields or {})
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__

    def _number(self, name: str) -> int | None:
        text = self.fields.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else None


class InvalidArgumentError(TesseraError, ValueError):
    """A field has a value that is not accepted, or a picture can't be read.

    Attributes:
        path: Path of the field in the request, such as `spec.width`; empty if the request was not sent.
    """

    default_kind = "invalid_argument"
    path: str = ""

    @property
    def field(self) -> str | None:
        """Name of the field: that of the keyword argument."""
        return self.fields.get("field")

    @property
    def value(self) -> str | None:
        """Its value as text; None if it was missing."""
        return self.fields.get("value")

    @property
    def expected(self) -> str | None:
        """Description of the accepted values."""
        return self.fields.get("expected")

    @property
    def nearest(self) -> int | None:
        """Accepted number that is closest to the given one."""
        return self._number("nearest")

    @classmethod
    def of(cls, field: str, value: object, expected: str) -> InvalidArgumentError:
        """The error of an argument that was not sent."""
        fields = {"field": field, "value": str(value), "expected": expected}
        return cls(f"{field} is {value}; expected {expected}", fields=fields)


class ExhaustedError(TesseraError):
    """A limit of the server is reached. `retry_after` is None if the request can never fit."""

    default_kind = "exhausted"

    @property
    def resource(self) -> str | None:
        """Name of the resource with its unit, such as `memory_bytes` or `queued_jobs`."""
        return self.fields.get("resource")

    @property
    def needed(self) -> int | None:
        """Amount that was asked for."""
        return self._number("needed")

    @property
    def limit(self) -> int | None:
        """Amount that is available in all."""
        return self._number("limit")


class _ResourceError(TesseraError):
    """An error about a resource."""

    @property
    def resource(self) -> str | None:
        """Type of the resource: `job`, `model`, `tile` or `preview`."""
        return self.fields.get("resource")

    @property
    def name(self) -> str | None:
        """Full name of the resource, such as `jobs/ID`."""
        return self.fields.get("name")


class NotFoundError(_ResourceError):
    """The resource does not exist, or belongs to another client."""

    default_kind = "not_found"


class NotReadyError(_ResourceError):
    """The resource is in a state that does not allow the call yet."""

    default_kind = "not_ready"

    @property
    def state(self) -> str | None:
        """Its state."""
        return self.fields.get("state")

    @property
    def required(self) -> str | None:
        """State that the call requires."""
        return self.fields.get("required")


class DamagedError(_ResourceError):
    """Stored data can't be read as it was written. `retry_after` is set if the server computes it again."""

    default_kind = "damaged"


class ExpiredError(TesseraError):
    """A deadline or time limit has passed."""

    default_kind = "expired"


class CancelledError(TesseraError):
    """The call was cancelled."""

    default_kind = "cancelled"


class UnavailableError(TesseraError):
    """The server can't be reached, is shutting down, or has lost its device."""

    default_kind = "unavailable"


class UnauthenticatedError(TesseraError):
    """The call has no valid token, or the token does not allow the call."""

    default_kind = "unauthenticated"


class InternalError(TesseraError):
    """The server has failed, or its answer is not one of this API."""

    default_kind = "internal"


class JobFailedError(TesseraError):
    """The job has failed; `kind` says why, and `job` is its name."""

    job: str = ""


class JobCancelledError(TesseraError):
    """The job was cancelled; `job` is its name."""

    default_kind = "cancelled"
    job: str = ""


_BY_KIND: dict[str, type[TesseraError]] = {
    "invalid_argument": InvalidArgumentError,
    "invalid_image": InvalidArgumentError,
    "exhausted": ExhaustedError,
    "not_found": NotFoundError,
    "not_ready": NotReadyError,
    "damaged": DamagedError,
    "expired": ExpiredError,
    "cancelled": CancelledError,
    "unavailable": UnavailableError,
    "device": UnavailableError,
    "unauthenticated": UnauthenticatedError,
}
"""Classes of the service's kinds of error; InternalError of the others."""

_BY_CODE: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_argument",
    grpc.StatusCode.OUT_OF_RANGE: "invalid_argument",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "unauthenticated",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.ALREADY_EXISTS: "not_ready",
    grpc.StatusCode.FAILED_PRECONDITION: "not_ready",
    grpc.StatusCode.ABORTED: "not_ready",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "exhausted",
    grpc.StatusCode.DEADLINE_EXCEEDED: "expired",
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.DATA_LOSS: "damaged",
}
"""Kinds of statuses without details of this API."""


def kind_of_code(number: int) -> str:
    """The kind of error of a `google.rpc.Code`."""
    code = next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)
    return _BY_CODE.get(code, "internal")


class Failure:
    """The status of a failed call."""

    def __init__(self, error: grpc.RpcError) -> None:
        # Every error that a call raises is a Call or an AioRpcError, which have these methods.
        status: Any = error
        self.code: grpc.StatusCode = status.code()
        self.message = sanitize(status.details() or "") or self.code.name
        self.info = error_details_pb2.ErrorInfo()
        self._bad_request = error_details_pb2.BadRequest()
        self._quota = error_details_pb2.QuotaFailure()
        self._resource = error_details_pb2.ResourceInfo()
        self._retry: error_details_pb2.RetryInfo | None = None
        for packed in _details(status.trailing_metadata() or ()):
            for message in (self.info, self._bad_request, self._quota, self._resource):
                packed.Unpack(message)
            retry = error_details_pb2.RetryInfo()
            if packed.Unpack(retry):
                self._retry = retry

    @property
    def is_own(self) -> bool:
        """True if the service has sent it, and not a proxy or this client's end of the connection."""
        return self.info.domain == DOMAIN

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the call may succeed."""
        if self._retry is None:
            return None
        return max(self._retry.retry_delay.seconds + self._retry.retry_delay.nanos / 1e9, 0.0)

    @property
    def is_transient(self) -> bool:
        """True if the same call may succeed later: the server is away, a connection broke, or a limit may be lifted."""
        broken = self.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and not self.is_own
        return self.code is grpc.StatusCode.UNAVAILABLE or broken or self._retry is not None

    def error(self, server: str) -> TesseraError:
        """The error to raise."""
        kind = self.info.reason.lower() if self.is_own else _BY_CODE.get(self.code, "internal")
        message = self.message if self.is_own else f"server {server}: {self.message}"
        fields = {name: sanitize(value) for name, value in self.info.metadata.items()} if self.is_own else {}
        if self._quota.violations:
            fields.setdefault("resource", sanitize(self._quota.violations[0].subject))
        if self._resource.resource_name:
            fields["name"] = sanitize(self._resource.resource_name)
        error = _BY_KIND.get(kind, InternalError)(message, kind=kind, fields=fields, retry_after=self.retry_after)
        if isinstance(error, InvalidArgumentError) and self._bad_request.field_violations:
            error.path = sanitize(self._bad_request.field_violations[0].field)
            error.fields.setdefault("field", error.path.rsplit(".", 1)[-1])
        return error


def _details(metadata: Iterable[tuple[str, str | bytes]]) -> Sequence[Any]:
    """The packed details of a status; none if they can't be read."""
    for key, value in metadata:
        if key == _DETAILS and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value).details
            except DecodeError:
                return ()
    return ()
