"""float32 products that are float32, whatever the process allows torch to make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import torch

# How coarse a float32 product may be: how to read and to write it, the words for "unset" and for
# "not at all". cuBLAS and oneDNN have a setting each since torch 2.9, and one together before.
_SETTINGS: list[tuple[Callable[[], str], Callable[[str], None], str, str]]
_backends: Any = torch.backends
if hasattr(_backends, "fp32_precision"):
    _SETTINGS = [
        (
            partial(getattr, backend.matmul, "fp32_precision"),
            partial(setattr, backend.matmul, "fp32_precision"),
            "none",
            "ieee",
        )
        for backend in (_backends.cuda, _backends.mkldnn)
    ]
else:
    _SETTINGS = [
        (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "highest",
            "highest",
        )
    ]

# They are the process's, not a thread's: who finds one coarse changes it, and the last to leave
# puts it back. What other threads multiply in between is finer than they asked for, never coarser;
# only one that changes a setting in between, which then stays, makes our product under way coarse.
_lock = Lock()
_holders = 0
_found: dict[int, str] = {}


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """No autocast, no TF32 and no bfloat16 in float32 products, for a moment.

    >>> torch.set_float32_matmul_precision("high")
    >>> with full_precision("cpu"):
    ...     torch.backends.cuda.matmul.fp32_precision
    'ieee'
    >>> torch.get_float32_matmul_precision()
    'high'
    >>> torch.set_float32_matmul_precision("highest")
    """
    global _holders
    with torch.autocast(device_type, enabled=False):
        with _lock:
            _holders += 1
            for i, (read, write, unset, full) in enumerate(_SETTINGS):
                value = read()
                if value not in (unset, full):
                    write(unset)
                    inherited = read() == value
                    _found[i] = unset if inherited else value
                    write(full)
        try:
            yield
        finally:
            with _lock:
                _holders -= 1
                while _holders == 0 and _found:
                    i, value = _found.popitem()
                    read, write, _, full = _SETTINGS[i]
                    if read() == full:
                        write(value)
