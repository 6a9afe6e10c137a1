"""Where a study lives: a database or a journal, from a URL."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from slim.errors import SlimError

TRIES = 5
EXTRA = "Install it with: pip install 'slim-channels[sweep]'."


def optuna() -> Any:
    """Optuna, which only says what concerns the user.

    Raises:
        SlimError: It is not installed.
    """
    try:
        import optuna as found
    except ImportError as error:
        raise SlimError(f"hydra/sweeper=optuna needs Optuna. Got none ({error}). {EXTRA}") from error
    found.logging.set_verbosity(found.logging.WARNING)
    return found


def url_of(storage: str | None, directory: Path) -> str:
    """The storage's URL; by default a SQLite file in the sweep's directory, whichever folder a job looks from.

    >>> url_of(None, Path("/sweeps/1"))
    'sqlite:////sweeps/1/study.db'
    """
    return storage or f"sqlite:///{directory.absolute() / 'study.db'}"


def connect(url: str) -> Any:
    """The storage behind a URL.

    Args:
        url: Of a database, as SQLAlchemy writes it (``sqlite:///study.db``, ``postgresql+psycopg://...``,
            ``mysql+pymysql://...``); ``journal:///folder/study.log``, a file that machines share; or
            ``journal+redis://host:port/db``.

    Raises:
        SlimError: It cannot be opened.
    """
    found = optuna()
    for attempt in range(TRIES):
        try:
            with warnings.catch_warnings():
                # Optuna calls interfaces experimental that have been there for years.
                warnings.simplefilter("ignore", found.exceptions.ExperimentalWarning)
                return _opened(url)
        except Exception as error:  # of SQLAlchemy, a driver, Redis or the file system
            # Two processes that begin at the same moment make the same tables; one of them fails.
            if (
                type(error).__name__ in ("IntegrityError", "OperationalError", "ProgrammingError")
                and attempt + 1 < TRIES
            ):
                time.sleep(0.2 * 2**attempt)
                continue
            text = " ".join(str(error).split())[:200]
            raise SlimError(
                f"A study's storage must open. Got hydra.sweeper.storage={url} ({type(error).__name__}: {text}). "
                "Set it to sqlite:///<file>, journal:///<file> or a database's URL, with its driver installed."
            ) from error
    raise AssertionError


def _opened(url: str) -> Any:
    found = optuna().storages
    kind, _, place = url.partition("://")
    if kind == "journal":
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        return found.JournalStorage(found.journal.JournalFileBackend(str(path)))
    if kind == "journal+redis":
        return found.JournalStorage(found.journal.JournalRedisBackend(f"redis://{place}"))
    if kind.startswith("sqlite"):
        # Several processes write: each waits for the others' transactions instead of giving up after 5 s.
        Path(place.removeprefix("/")).parent.mkdir(parents=True, exist_ok=True)
        # Optuna fills in its version for {SCHEMA_VERSION}, and fails at braces in a folder's name.
        url = url.replace("{", "{{").replace("}", "}}")
        return found.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 120}})
    return found.RDBStorage(url)


def close(storage: Any) -> None:
    """Let go of a storage's connections; it opens new ones when it is used again."""
    if hasattr(storage, "engine"):
        storage.remove_session()
        storage.engine.dispose()
