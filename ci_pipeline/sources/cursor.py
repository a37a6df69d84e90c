"""How far a source has been read, in a way that loses no run that turns up late or out of order.

A cursor is a time, and the runs already given that completed less than `OVERLAP` before it. What completed earlier is
behind us; a run that becomes visible up to `OVERLAP` after it completed is still found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from ci_pipeline.sources import SourceError

OVERLAP = timedelta(hours=2)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cursor:
    """`at`: when the newest run given completed. `seen`: their completion by key. `swept`: the last look far back."""

    at: datetime
    seen: Mapping[str, datetime] = field(default_factory=dict)
    swept: datetime | None = None

    @staticmethod
    def since(time: datetime) -> Cursor:
        """The cursor whose next page holds what completed after `time`."""
        return Cursor(time + OVERLAP)

    def dump(self) -> str:
        seen = {key: time.isoformat() for key, time in self.seen.items()}
        swept = self.swept.isoformat() if self.swept else None
        return json.dumps({"at": self.at.isoformat(), "seen": seen, "swept": swept})

    @staticmethod
    def load(text: str) -> Cursor:
        """Raises: SourceError: this is no cursor."""
        try:
            data = json.loads(text)
            seen = {key: _utc(time) for key, time in data["seen"].items()}
            return Cursor(_utc(data["at"]), seen, _utc(data["swept"]) if data["swept"] else None)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError(f"not a cursor: {text[:80]!r}: reset it to start again") from None

    def page(self, completed: Iterable[tuple[datetime, str, T]], limit: int) -> tuple[list[T], Cursor]:
        """The next `limit` of `(completion time, key, run)` in order of completion, and the cursor behind them.

        A completion in the future (somebody's clock is wrong) does not move the cursor beyond now.
        """
        horizon = self.at - OVERLAP
        fresh = sorted((run for run in completed if run[0] > horizon and run[1] not in self.seen), key=lambda r: r[:2])
        taken = fresh[: max(limit, 1)]
        if not taken:
            return [], self
        at = max(self.at, min(taken[-1][0], datetime.now(UTC)))
        seen = dict(self.seen) | {key: time for time, key, _ in taken}
        seen = {key: time for key, time in seen.items() if time > at - OVERLAP}
        return [run for _, _, run in taken], replace(self, at=at, seen=seen)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
