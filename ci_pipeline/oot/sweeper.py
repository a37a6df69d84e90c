"""Jobs that began and were never heard of again: they are closed as timed out, until they speak after all."""

from __future__ import annotations

from datetime import UTC, datetime

from ci_pipeline.oot.store import Store


def close_silent_jobs(store: Store, silent_hours: float, now: float) -> list[str]:
    """Close the jobs that said nothing for `silent_hours`; the keys of those that were closed.

    A callback that comes at the same moment wins, and so does one that comes later.

    Raises:
        StoreUnavailable: some are still open.
    """
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    closing = {
        key: store.close_job(
            change, {"dynamoKey": key, "status": "completed", "conclusion": "timed_out", "completed_at": at}
        )
        for change in store.records(until=now - silent_hours * 3600, status="in_progress")
        if (key := str(change.record["dynamoKey"]))
    }
    return [key for key, closed in closing.items() if closed.result()]
