"""When a lease is to be prolonged and when its work is no longer ours. Pure; times are of one monotonic clock."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Lease:
    """`until_s` is counted from when the request that got it *left*, never later."""

    until_s: float
    length_s: float

    def move(self, now_s: float, phase: str) -> Literal["work", "renew", "stop"]:
        """A plan stops at its lease's end; an apply is never stopped by it: its state is still to be delivered."""
        left_s = self.until_s - now_s
        if left_s <= 0 and phase == "plan":
            return "stop"
        return "renew" if left_s < self.length_s * 3 / 4 else "work"
