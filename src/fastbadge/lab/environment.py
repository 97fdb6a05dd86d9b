"""Where a run was computed: what one needs to know to compute it again."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from fastbadge.lab.protocol import Config

_PACKAGES = ("fastbadge", "torch", "numpy", "numba", "scikit-learn")


def describe_environment(config: Config) -> dict[str, str]:
    """Versions, processor, GPU and commit, as far as they can be found out.

    >>> facts = describe_environment(Config())
    >>> facts["torch"] == torch.__version__, facts["device"]
    (True, 'cpu')
    """
    facts = {"python": platform.python_version()}
    facts |= {package: _version(package) for package in _PACKAGES}
    facts |= {
        "torch": torch.__version__,  # the package's own may leave out which build it is
        "platform": platform.platform(),
        "processor": _processor(),
        "device": _device_name(config.device),
        "threads": str(config.threads),
    }
    if commit := _commit(Path(__file__).parents[3]):
        facts["commit"] = commit
    return facts


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # no Linux, or a processor without a name
        return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    if torch.device(device).type != "cuda":
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _commit(checkout: Path) -> str | None:
    """The commit of a checkout, "-dirty" where files differ; None for an installed package."""
    if not (checkout / ".git").exists():  # an outer repository would not be ours
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
