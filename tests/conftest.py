from pathlib import Path

import pytest
import torch

torch.manual_seed(0)  # what is drawn while tests are collected, such as a parameter's weights

MNIST_DIR = Path(__file__).parents[2] / "shared" / "data" / "mnist"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The real MNIST files, laid beside the repository."""
    if not MNIST_DIR.is_dir():
        pytest.skip(f"no MNIST files at {MNIST_DIR}")
    return MNIST_DIR
