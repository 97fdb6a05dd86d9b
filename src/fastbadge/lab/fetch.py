"""Files fetched once into the user's cache and checked, from whichever mirror has them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from fastbadge.errors import DataError

_ATTEMPTS = 2
_TIMEOUT_SECONDS = (5, 30)  # to connect, to wait for the next bytes


def cache_dir(name: str) -> Path:
    """Where fetched files of a data set are kept."""
    import pooch

    return Path(pooch.os_cache("fastbadge")) / name


def fetch_files(
    name: str,
    mirrors: tuple[str, ...],
    md5s: Mapping[str, str],
    *,
    data_dir: Path | None,
    what: str,
) -> tuple[Path, ...]:
    """The cached files whose checksum is right; the others are fetched into the cache first.

    Args:
        name: of the data set, and so of its folder in the cache.
        mirrors: URLs that end before the name of a file.
        md5s: checksum of each file.
        data_dir: where they were looked for in vain, for the message.
        what: what --data-dir should hold, for the message.

    Raises:
        DataError: no network, or no mirror has a file of that checksum.
    """
    import pooch

    cache = cache_dir(name)
    pooch.get_logger().setLevel("ERROR")  # what went wrong is told in one line below
    try:
        return tuple(_fetch(mirrors, file, md5, cache) for file, md5 in md5s.items())
    except (OSError, ValueError) as error:
        where = f"under {data_dir} nor in" if data_dir else "in --data-dir nor in"
        raise DataError(
            f"{name} is neither {where} the cache {cache}, and fetching it failed "
            f"({type(error).__name__}); pass --data-dir with {what}, or "
            "--dataset digits, which needs no file"
        ) from error


def _fetch(mirrors: tuple[str, ...], file: str, md5: str, cache: Path) -> Path:
    """The cached file if its checksum is right, else the first mirror's that has the right one."""
    import pooch
    import requests

    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_SECONDS)
    failures: list[Exception] = []
    for _ in range(_ATTEMPTS):
        for mirror in mirrors:
            try:
                return Path(
                    pooch.retrieve(mirror + file, f"md5:{md5}", file, cache, None, downloader)
                )
            except (OSError, ValueError) as failure:  # ValueError: another checksum
                failures.append(failure)
        if all(isinstance(failure, requests.ConnectionError) for failure in failures):
            break  # no network: trying again would only make the user wait
    raise failures[-1]
