import signal
from pathlib import Path

import pytest
import torch

collect_ignore = ["timm_program.py"]  # has a process of its own

# A shell script that runs the tests in the background has Ctrl-C ignored, in all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.manual_seed(0)  # what is drawn while tests are collected, such as a parameter's weights

DATA = Path(__file__).parents[2] / "shared" / "data"
MNIST_DIR = DATA / "mnist"
LETTER_CSV = DATA / "letter" / "letter.csv"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The real MNIST files, laid beside the repository."""
    if not MNIST_DIR.is_dir():
        pytest.skip(f"no MNIST files at {MNIST_DIR}")
    return MNIST_DIR


@pytest.fixture(scope="session")
def letter_csv() -> Path:
    """The real table of letters, laid beside the repository."""
    if not LETTER_CSV.is_file():
        pytest.skip(f"no table of letters at {LETTER_CSV}")
    return LETTER_CSV
