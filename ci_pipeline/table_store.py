"""The tables of each CI run as Parquet files: `<root>/<table>/<run key>.parquet`, on a disk or in a bucket."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ci_pipeline.sources.raw_store import filesystem
from ci_pipeline.whole_file import write_whole

if TYPE_CHECKING:
    import pyarrow as pa

SMALL = 2**20
"""Bytes up to which a file is read whole, whichever of its columns are asked for."""

FEW = 1000
"""Rows up to which a dictionary takes longer, to write and to read, than it saves bytes."""


def parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=table.num_rows > FEW)
    return sink.getvalue().to_pybytes()


class MissingTable(LookupError):
    """A table was asked for that no step has written yet. The text is one line."""


class TableStore:
    """Tables by name and run key. A file is there whole or not at all; writing again replaces it.

    `root` is a path or `s3://<bucket>/<prefix>`. Any tool that reads Parquet reads a table of all runs from its folder.
    """

    def __init__(self, root: str) -> None:
        self._fs, self._root = filesystem(root)
        self._local = self._fs.type_name == "local"

    def uri(self, table: str, run_key: str) -> str:
        path = self._path(table, run_key)
        return path if self._local else f"{self._fs.type_name}://{path}"

    def write(self, table: str, run_key: str, rows: pa.Table) -> int:
        """Returns the size of the file in bytes."""
        data = parquet(rows)  # whole, before the first byte is written: a bucket keeps what a stream ends with
        path = self._path(table, run_key)
        if self._local:
            write_whole(path, data)
        else:
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
        return len(data)

    def read(self, table: str, run_key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns of a table, or all of them.

        Raises:
            MissingTable: the step that writes it has not run for this CI run.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._fs.open_input_file(self._path(table, run_key)) as file:
                if file.size() > SMALL:
                    return pq.ParquetFile(file).read(columns)
                # A third of the time of read_table: in one piece, and before threads would have begun.
                return pq.ParquetFile(pa.BufferReader(file.read())).read(columns, use_threads=False)
        except FileNotFoundError:
            raise MissingTable(f"CI run {run_key} has no table {table!r} yet: materialise {table!r} for it") from None

    def has(self, table: str, run_key: str) -> bool:
        return self._fs.get_file_info(self._path(table, run_key)).is_file

    def written(self, table: str) -> dict[str, datetime]:
        """When each run's table was written, by run key."""
        from pyarrow.fs import FileSelector

        infos = self._fs.get_file_info(FileSelector(f"{self._root}/{table}", allow_not_found=True))
        return {i.base_name.removesuffix(".parquet"): i.mtime for i in infos if i.base_name.endswith(".parquet")}

    def delete(self, table: str, run_key: str) -> None:
        """Deleting what is not there is no error."""
        if self.has(table, run_key):
            self._fs.delete_file(self._path(table, run_key))

    def _path(self, table: str, run_key: str) -> str:
        return f"{self._root}/{table}/{run_key}.parquet"
