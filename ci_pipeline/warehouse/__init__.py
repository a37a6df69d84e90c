"""The history that can be asked: ClickHouse, or chDB behind ClickHouse's HTTP interface."""


class WarehouseError(RuntimeError):
    """The warehouse cannot be used. The text is one line that names the thing and the way out."""
