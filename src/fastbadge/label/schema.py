"""The tables of a labelling project, and how its file is opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastbadge.errors import ProjectError
from fastbadge.sqlitefile import SQLiteFile, transaction

FILE_NAME = "project.sqlite"
SCHEMA_VERSION = 1

# STRICT: a text in a column of numbers is an error when written, not when a model is trained.
_TABLES = """
CREATE TABLE project (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    config TEXT NOT NULL,          -- JSON, see project.Config
    created TEXT NOT NULL          -- UTC, ISO 8601, as all times
) STRICT;
CREATE TABLE class (
    id INTEGER PRIMARY KEY,        -- from 1, never reused
    name TEXT NOT NULL UNIQUE,
    position INTEGER NOT NULL      -- where it stands on the page
) STRICT;
CREATE TABLE item (
    id INTEGER PRIMARY KEY,        -- from 1 without gaps: row id - 1 of the features
    digest TEXT NOT NULL,          -- SHA-256 of the file, the text or the row of features
    name TEXT NOT NULL,            -- path below the source, or number of the row from 0
    text TEXT,                     -- where items are texts
    ticket REAL NOT NULL,          -- drawn uniformly from [0, 1) when it was added
    reserved INTEGER NOT NULL,     -- 1: for validation alone, see numbers.py
    missing INTEGER NOT NULL,      -- 1: no longer in the source
    added TEXT NOT NULL
) STRICT;
CREATE INDEX item_digest ON item (digest);
CREATE INDEX item_ticket ON item (reserved, ticket);
CREATE TABLE model (
    id INTEGER PRIMARY KEY,
    labels INTEGER NOT NULL,       -- trained on so many
    correct INTEGER NOT NULL,      -- of the validation slice as it then was
    total INTEGER NOT NULL,
    seconds REAL NOT NULL,         -- wall time of training and query
    guesses BLOB NOT NULL,         -- .npz: item and class, what it predicted for the reserve
    weights BLOB,                  -- .npz, see head.py; NULL for all but the latest
    created TEXT NOT NULL
) STRICT;
CREATE TABLE batch (
    id INTEGER PRIMARY KEY,
    strategy TEXT NOT NULL,
    seed INTEGER NOT NULL,
    model INTEGER REFERENCES model (id),  -- NULL: chosen before there was one
    created TEXT NOT NULL
) STRICT;
CREATE TABLE batch_item (
    item INTEGER PRIMARY KEY REFERENCES item (id),  -- in one batch at most
    batch INTEGER NOT NULL REFERENCES batch (id),
    position INTEGER NOT NULL,     -- order in which they are handed out, from 0
    reason TEXT NOT NULL,          -- the strategy, or "validation"
    gradient_norm REAL,            -- at the time of choice, as the next two
    predicted INTEGER REFERENCES class (id),
    confidence REAL,
    done INTEGER NOT NULL,         -- 1: as many annotators have answered as are wanted
    UNIQUE (batch, position)
) STRICT;
CREATE INDEX batch_item_open ON batch_item (batch, position) WHERE done = 0;
CREATE TABLE label (               -- one row a click; rows are never removed
    id INTEGER PRIMARY KEY,
    item INTEGER NOT NULL REFERENCES item (id),
    annotator TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('label', 'cannot tell', 'skip')),
    class INTEGER REFERENCES class (id) CHECK ((kind = 'label') = (class IS NOT NULL)),
    batch INTEGER REFERENCES batch (id),  -- NULL: imported, or not from a batch
    seconds REAL,                  -- that the annotator took
    created TEXT NOT NULL,
    request TEXT UNIQUE,           -- the browser's name for the click, so that a retry counts once
    undone TEXT,                   -- when it was taken back
    undo_request TEXT UNIQUE
) STRICT;
CREATE INDEX label_item ON label (item, annotator);
CREATE INDEX label_annotator ON label (annotator, id);
CREATE TABLE assignment (          -- who has which item on the screen
    item INTEGER NOT NULL REFERENCES item (id),
    annotator TEXT NOT NULL,
    expires REAL NOT NULL,         -- seconds since 1970
    PRIMARY KEY (item, annotator)
) STRICT, WITHOUT ROWID;
CREATE TABLE studio (              -- the project in Label Studio that gets the batches, if any
    id INTEGER PRIMARY KEY CHECK (id = 1),
    marker TEXT NOT NULL,          -- in its description, and before the request of its labels
    project INTEGER,               -- its id there; NULL: about to be made
    created TEXT                   -- when it was made there
) STRICT;
"""
# Made anew by each connection, not kept in the file: what counts is for the code to say, also where
# an older one made the project.
_VIEWS = (
    # The latest word of each annotator on an item, unless that is to pass it by.
    """
    CREATE TEMP VIEW answer AS SELECT item, annotator, class, id FROM label AS said
    WHERE undone IS NULL AND kind <> 'skip' AND NOT EXISTS (
        SELECT 1 FROM label AS later WHERE later.item = said.item
            AND later.annotator = said.annotator AND later.undone IS NULL AND later.id > said.id
    )
    """,
    # The class that most annotators say; of equally many, what was said last: a second look counts.
    # No row where that is that they cannot tell.
    """
    CREATE TEMP VIEW settled AS SELECT item, class, rank, opinions FROM (
        SELECT item, class, max(votes * 0x10000000000 + latest) AS rank, count(*) AS opinions
        FROM (
            SELECT item, class, count(*) AS votes, max(id) AS latest FROM answer
            GROUP BY item, class
        ) GROUP BY item
    ) WHERE class IS NOT NULL
    """,
    """
    CREATE TEMP VIEW disputed AS
    SELECT item FROM answer GROUP BY item HAVING count(DISTINCT coalesce(class, 0)) > 1
    """,
)
FILE = SQLiteFile(
    SCHEMA_VERSION,
    _TABLES,
    "labelling project",
    "pass the directory that fastbadge label init made",
    ProjectError,
)


@contextmanager
def connected(
    directory: Path, *, write: bool = False, durable: bool = True
) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction: a snapshot to read, or with `write` all or nothing.

    What was committed survives kill -9; if `durable`, which costs a wait for the disk, also the
    loss of power.

    Raises:
        ProjectError: no project there, or one that cannot be used.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise ProjectError(
            f"{directory} holds no {FILE_NAME}; make it with: fastbadge label init SOURCE"
        )
    with FILE.connection(path) as connection:
        FILE.check(connection, path)
        for view in _VIEWS:
            connection.execute(view)
        if write:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with transaction(connection):
                yield connection
        else:
            connection.execute("BEGIN")
            yield connection


@contextmanager
def kept_open(directory: Path) -> Iterator[None]:
    """While the block runs, no call is the last to close the file, which would tidy it up.

    For a server: a click takes 9 ms rather than 28 on a disk that needs 8 to write for sure.
    """
    with connected(directory) as connection:
        connection.execute("SELECT 1 FROM project").fetchone()
        connection.execute("COMMIT")  # an open snapshot would keep the log from being emptied
        yield
