"""A SQLite file that is somebody's record: opened, written in transactions, checked for its schema.

The caller says which kind of FastbadgeError its users expect and what they can do.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fastbadge.errors import FastbadgeError


@dataclass(frozen=True, slots=True)
class SQLiteFile:
    """One kind of file.

    Args:
        version: of the schema, kept in the file's `user_version`, from 1.
        tables: CREATE statements, each ended by ";" and the end of its line.
        what: it is, for messages, such as "record of a fastbadge run".
        advice: what to do about one that cannot be used, such as "pass another run directory".
        error: what to raise.
    """

    version: int
    tables: str
    what: str
    advice: str
    error: type[FastbadgeError]

    @contextmanager
    def connection(self, path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """An open connection; any SQLite error inside the block is raised as `error`."""
        if create:
            mode = "mode=rwc"
        elif os.access(path.parent, os.W_OK):
            mode = "mode=rw"  # readers too: the last to close a WAL file tidies up beside it
        elif not _beside(path, "-wal").exists():
            mode = "immutable=1"  # else SQLite would need to write beside a WAL file to read it
        elif _beside(path, "-shm").exists():
            mode = "mode=ro"
        else:
            with _copy(path) as copied, self.connection(copied) as connection:
                yield connection
            return
        uri = f"{path.absolute().as_uri()}?{mode}"
        try:
            # Autocommit; transactions are begun in so many words.
            opened = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
            with closing(opened) as connection:
                yield connection
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise self.error(
                    f"{path} cannot grow, the disk is full; make room, and the same command goes on"
                ) from error
            raise self.error(f"{path} cannot be used: {error}; {self.advice}") from error

    @contextmanager
    def creation(self, path: Path) -> Iterator[tuple[sqlite3.Connection, bool]]:
        """A connection in a transaction in which the tables are there, and if they are new.

        What the block writes is committed with them, or neither is.
        """
        with self.connection(path, create=True) as connection:
            if not is_empty(connection):
                self.check(connection, path)  # before the first write
            connection.execute("PRAGMA journal_mode = WAL")
            with transaction(connection):
                new = is_empty(connection)  # asked again: two may start at the same moment
                if new:
                    for statement in self.tables.split(";\n"):  # executescript would commit
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {self.version}")
                yield connection, new

    def check(self, connection: sqlite3.Connection, path: Path) -> None:
        """Refuse another schema, with `error`."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > self.version:
            raise self.error(
                f"{path} has schema version {version}; this fastbadge reads up to {self.version}; "
                "install a newer one"
            )
        if version < 1:
            raise self.error(f"{path} is no {self.what}; {self.advice}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that the block writes, or nothing; no other process writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether there are no tables: a process killed before its first commit leaves such a file."""
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def now_utc() -> str:
    """The time for a row, UTC, ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _copy(path: Path) -> Iterator[Path]:
    """A file that a kill left in two, on a medium where SQLite cannot join them."""
    with tempfile.TemporaryDirectory(prefix="fastbadge-") as directory:
        copied = Path(directory) / path.name
        for suffix in ("", "-wal"):
            shutil.copyfile(_beside(path, suffix), _beside(copied, suffix))
        yield copied


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
