"""Address, credentials and options of a connection."""

from __future__ import annotations

import ipaddress
import os
import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import grpc

from tessera_client import _version
from tessera_client.errors import InvalidArgumentError

DEFAULT_SERVER = "http://127.0.0.1:50051"

Pem: TypeAlias = "bytes | str | PathLike[str]"
"""The path of a PEM file, or its bytes."""

_Channel = TypeVar("_Channel")

# A raw tile of the largest size, 1024 x 1024 pixels of 6 bytes, and the message around it.
_MAX_MESSAGE = 1024 * 1024 * 6 + (1 << 20)

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.primary_user_agent", f"tessera-client/{_version.__version__}"),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A server that is back is found soon, and two clients do not share an outage.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 4_000),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Address:
    """A server's address."""

    url: str
    target: str
    """Host and port."""
    secure: bool
    path: str
    """Path under which a proxy offers the service: empty, or it begins with a slash."""
    loopback: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """Parses an address like `http://127.0.0.1:50051` or `https://example.org/pictures`."""
        refused = InvalidArgumentError.of("server", repr(url), f"an address like {DEFAULT_SERVER}")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise refused from None
        plain = not (parts.query or parts.fragment or parts.username or parts.password)
        if parts.scheme not in ("http", "https") or not host or not plain or any(c.isspace() for c in url):
            raise refused
        secure = parts.scheme == "https"
        host = f"[{host}]" if ":" in host else host
        target = f"{host}:{port or (443 if secure else 80)}"
        return cls(url, target, secure, parts.path.rstrip("/"), _is_loopback(host.strip("[]")))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()


@dataclass(frozen=True)
class Settings:
    """A checked address with its credentials."""

    address: Address
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, server: str | None, token: str | None, ca: Pem | None, cert: Pem | None, key: Pem | None) -> Settings:
        """Checks the arguments of a client; the environment has what is not given."""
        address = Address.of(server or os.environ.get("TESSERA_SERVER") or DEFAULT_SERVER)
        token = token or os.environ.get("TESSERA_TOKEN") or None
        if token and not all("!" <= c <= "~" for c in token):
            raise InvalidArgumentError.of("token", "(secret)", "printable ASCII characters without spaces")
        if (cert is None) != (key is None):
            raise InvalidArgumentError.of("cert and key", "one of them", "both or none")
        if not address.secure:
            for field, value in (("ca", ca), ("cert", cert)):
                if value is not None:
                    raise InvalidArgumentError.of(field, f"given for {address.url}", "an https address")
            if token and not address.loopback:
                warnings.warn(f"the token goes to {address.url} without encryption; https hides it", stacklevel=4)
        credentials = grpc.ssl_channel_credentials(_read(ca), _read(key), _read(cert)) if address.secure else None
        return cls(address, credentials, (("authorization", f"Bearer {token}"),) if token else ())


class _Prefixed:
    """A channel whose calls go below a path."""

    def __init__(self, channel: Any, path: str) -> None:
        self._channel = channel
        self._path = path

    def __getattr__(self, kind: str) -> Any:
        make = getattr(self._channel, kind)
        return lambda method, *args, **options: make(self._path + method, *args, **options)


def below(channel: _Channel, path: str) -> _Channel:
    """The channel for stubs of a service below `path`."""
    prefixed: Any = _Prefixed(channel, path)
    return prefixed if path else channel
