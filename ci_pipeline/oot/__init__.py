"""Out-of-tree CI: callbacks of other organisations' jobs, from the proof of who sent one to the stored record."""


class Refused(Exception):
    """A callback is not accepted. The text is one line for its sender; `status` is the HTTP status of the answer."""

    def __init__(self, status: int, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after = retry_after  # seconds
