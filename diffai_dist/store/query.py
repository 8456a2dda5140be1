"""SQL over the history: the tables as views, made of exactly those parts that markers name."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diffai_dist import storage
from diffai_dist.errors import StoreError, UsageError
from diffai_dist.store.parts import Folder, Part, parse_marker, parts_of
from diffai_dist.store.tables import TABLES, schema
from diffai_dist.terminal import escape

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

# No files, no network, none of this program's variables, and no way back.
ALONE = "SET python_enable_replacements = false; SET enable_external_access = false; SET lock_configuration = true"


def query(folder: Folder, sql: str) -> pyarrow.Table:
    """The answer to the SQL, whose views are the tables of `tables.py`. UsageError for SQL that cannot be run.

    The SQL sees the views and nothing else: neither files nor the network.
    """
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise UsageError("query needs duckdb: pip install 'diffai-dist[sql]'") from error
    asked = {table for table in TABLES if table in sql.casefold()}
    rows = _rows(folder, asked) if asked else {}
    with duckdb.connect(":memory:") as connection:
        for table in TABLES:
            connection.register(table, rows.get(table, schema(table).empty_table()))
        connection.execute(ALONE)
        try:
            answer = connection.sql(sql)
            if answer is None:
                raise UsageError("the SQL answers nothing: end it with a SELECT")
            return answer.to_arrow_table()
        except (duckdb.Error, UnicodeEncodeError) as error:
            raise UsageError(f"the SQL cannot be run: {escape(str(error).splitlines()[0], 1024)}") from error


def _rows(folder: Folder, tables: set[str]) -> dict[str, pyarrow.Table | pyarrow.dataset.Dataset]:
    """The rows of each table that has any. Local files are scanned as the query needs them."""
    found: dict[str, list[Part]] = {}
    for part in _named(folder):
        table = part.path.split("/")[1]
        if part.path.startswith("tables/") and table in tables:
            found.setdefault(table, []).append(part)
    return {table: _scanned(folder, table, parts) for table, parts in found.items()}


def _named(folder: Folder) -> Iterator[Part]:
    """The parts of all runs whose markers this version reads; the others are left out, and said so."""
    paths = [path for path in folder.listing("runs") if path.count("/") == 2 and path.endswith("/_SUCCESS.json")]
    for path, data in folder.fetch_each(paths):
        try:
            yield from parts_of(parse_marker(data or b"", folder.name(path)))
        except StoreError as error:
            log.warning("left out of the query: %s", error)


def _scanned(folder: Folder, table: str, parts: Sequence[Part]) -> pyarrow.Table | pyarrow.dataset.Dataset:
    import pyarrow as pa
    import pyarrow.dataset
    import pyarrow.fs
    import pyarrow.parquet

    columns, verified = schema(table), folder.read_each(parts)
    if not storage.is_remote(folder.url):
        paths = [storage.join(folder.url, part.path) for part, _ in verified]
        local = pyarrow.fs.LocalFileSystem()
        return pyarrow.dataset.dataset(paths, columns, format="parquet", filesystem=local)
    tables = [pyarrow.parquet.read_table(io.BytesIO(data)) for _, data in verified]
    return pa.concat_tables([columns.empty_table(), *tables], promote_options="default").select(columns.names)
