"""When a failed call is repeated."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Pauses before a call is repeated. They double, and each is shortened at random by up to a half.

    A call is repeated if its failure may pass: the server is away, the connection broke, or the server says after which
    time a limit may be lifted (that pause is kept at least). Repeated calls do not create a second job.
    """

    attempts: int = 6
    """Attempts of a call; 1: none is repeated."""
    first: float = 0.1
    """First pause in seconds."""
    most: float = 4.0
    """Longest pause in seconds."""
    give_up: float = 600.0
    """Seconds without a connection and without an event after which a watch gives up."""


class Backoff:
    """State of an outage."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self.reset()

    def reset(self) -> None:
        """Records progress, which ends the outage."""
        self._next = self._retry.first
        # Start of the current disconnection, and disconnected seconds before it.
        self._away: float | None = None
        self._lost = 0.0

    def answered(self) -> None:
        """Records a connection, which is no progress yet: connected time does not count."""
        if self._away is not None:
            self._lost += time.monotonic() - self._away
            self._away = None

    def pause(self, at_least: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None if it is time to give up."""
        now = time.monotonic()
        if self._away is None:
            self._away = now
        left = self._retry.give_up - self._lost - (now - self._away)
        if left <= 0:
            return None
        # Clients that were disconnected together should not all return together.
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(2 * self._next, self._retry.most)
        return min(max(pause, at_least or 0.0), left)
