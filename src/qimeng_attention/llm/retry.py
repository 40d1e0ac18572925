"""Ask again after a fault that may pass, as long as the provider asks to wait, or longer each time.

Not here: which faults may pass (chat.py), writing each try down (recorded.py).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from qimeng_attention.llm.chat import Client, ClientFault, Reply, Request

TRIES = 4  # the first one included
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 120.0
PATIENCE_S = 1800.0  # for one answer, tries and waits together


class Retried:
    """Another client, asked again where that may help."""

    def __init__(
        self,
        client: Client,
        *,
        tries: int = TRIES,
        first_wait_s: float = FIRST_WAIT_S,
        longest_wait_s: float = LONGEST_WAIT_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.name = client.name
        self._client, self._tries = client, tries
        self._first_s, self._longest_s, self._patience_s = first_wait_s, longest_wait_s, patience_s
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()

    def complete(self, request: Request) -> Reply:
        """Answer, after several tries if need be.

        Raises:
            ClientFault: the last try's.
        """
        began = self._clock()
        attempt = 1
        while True:
            try:
                return self._client.complete(request)
            except ClientFault as fault:
                fault.details["tries"] = attempt
                if not fault.retry or attempt >= self._tries:
                    raise
                if not fault.recorded:
                    wait = self.wait_s(fault, attempt)
                    if self._clock() - began + wait > self._patience_s:
                        raise
                    self._sleep(wait)
            attempt += 1

    def wait_s(self, fault: ClientFault, attempt: int) -> float:
        """Give the time before the next try: what the provider asks for, else twice as long as the last, less a part.

        The random part keeps parallel runs from coming back all at once.
        """
        if fault.wait_s is not None:
            return min(max(0.0, fault.wait_s) * self._rng.uniform(1.0, 1.1), self._longest_s)
        longest = min(self._first_s * 2.0 ** (attempt - 1), self._longest_s)
        return longest * self._rng.uniform(0.5, 1.0)
