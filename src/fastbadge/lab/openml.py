"""Tables of OpenML, by way of scikit-learn, which fetches, checks and keeps them."""

from __future__ import annotations

import warnings
import zlib
from functools import lru_cache

import numpy as np

from fastbadge.errors import DataError, InputError
from fastbadge.lab.fetch import cache_dir
from fastbadge.lab.tables import Table, one_hot, table_of


@lru_cache(maxsize=1)  # a million rows take 6 s to parse, and each trial divides them anew
def read_openml(argument: str) -> Table:
    """The table of an OpenML number, from the user's cache or fetched into it.

    Args:
        argument: the number, as in https://www.openml.org/d/6.

    Raises:
        InputError: not a number.
        DataError: no network, no such data set, or one that is no table with classes.
    """
    from sklearn.datasets import fetch_openml

    if not argument.isdecimal():
        raise InputError(f"dataset is 'openml:{argument}'; expected a number, such as openml:6")
    cache = cache_dir("openml")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each attempt to reach OpenML is one
            # The default parser needs pandas, and fails on classes that are numbers.
            found = fetch_openml(
                data_id=int(argument), as_frame=False, parser="liac-arff", data_home=cache
            )
    except OSError as error:
        raise DataError(
            f"openml:{argument} is not in the cache {cache}, and fetching it failed "
            f"({type(error).__name__}); pass its table as --dataset csv:PATH"
        ) from error
    except (ValueError, LookupError, EOFError, zlib.error) as error:  # a damaged cache, too
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"openml:{argument} cannot be used: {reason}; pass a table as --dataset csv:PATH"
        ) from error
    x_NF, y_N = found["data"], found["target"]
    if not isinstance(x_NF, np.ndarray) or y_N is None or y_N.ndim != 1:
        raise DataError(
            f"openml:{argument} is no table of rows with one class each; pass one as "
            "--dataset csv:PATH"
        )
    # Categories come as their numbers, NaN where one is missing.
    parts = [
        (one_hot(np.nan_to_num(column_N, nan=-1), f"openml:{argument}: column {name!r}"), False)
        if name in found["categories"]
        else (column_N[:, None], True)
        for name, column_N in zip(found["feature_names"], x_NF.T, strict=True)
    ]
    return table_of(parts, [str(label) for label in y_N], f"openml:{argument}")
