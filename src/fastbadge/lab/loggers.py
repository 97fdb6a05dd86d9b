"""Rounds sent to TensorBoard, Weights & Biases or MLflow as they finish.

The record of a run is its own file; these are for those who watch all their experiments in one
place. Each trial of each strategy is a run there, so that their own means over runs are means over
trials. A command that resumes a run sends the rounds it finds first, so what arrives is whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from fastbadge.errors import InputError
from fastbadge.lab.protocol import Config
from fastbadge.lab.store import RoundRow

OnRound: TypeAlias = Callable[[RoundRow], None]
Close: TypeAlias = Callable[[], object]

# Opens one trial of one strategy: (configuration, run directory, strategy, trial) to a function
# for its rows and one for its end.
Open: TypeAlias = Callable[[Config, Path, str, int], tuple[OnRound, Close]]

_MEASURES = ("accuracy", "loss", "train_seconds", "query_seconds")


@contextmanager
def log_rounds(names: Sequence[str], config: Config, directory: Path) -> Iterator[OnRound]:
    """A function to call with each row of a run, that passes it to the named loggers.

    Args:
        names: some of tensorboard, wandb, mlflow.
        config: of the run.
        directory: of the run; what a logger writes to disk goes there.

    Raises:
        InputError: an unknown logger, or one whose package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise InputError(f"logger is {name!r}; expected some of {', '.join(LOGGERS)}")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder, such as the ./wandb of its runs
            raise InputError(
                f"logger {name} needs a package that is not installed: "
                f"pip install 'fastbadge[{name}]'"
            )
    open_trials: dict[tuple[str, str, int], tuple[OnRound, Close]] = {}
    answering = list(names)

    def pass_on(name: str, row: RoundRow) -> None:
        key = (name, row.strategy, row.trial)
        if key not in open_trials:
            open_trials[key] = LOGGERS[name](config, directory, row.strategy, row.trial)
        log, close = open_trials[key]
        log(row)
        if row.round == config.rounds:
            del open_trials[key]
            close()

    def on_round(row: RoundRow) -> None:
        for name in list(answering):
            try:
                pass_on(name, row)
            except Exception as error:  # of whatever kind: it is no reason to stop an experiment
                answering.remove(name)
                said = (str(error).splitlines() or [""])[0]
                warnings.warn(
                    f"logger {name} failed and gets no further round of this command "
                    f"({type(error).__name__}: {said}); the record has them all",
                    stacklevel=2,
                )

    try:
        yield on_round
    finally:
        with ExitStack() as stack:  # what an interrupted run leaves open
            for (name, *_), (_, close) in open_trials.items():
                if name in answering:
                    stack.callback(close)


def _tensorboard(
    config: Config, directory: Path, strategy: str, trial: int
) -> tuple[OnRound, Close]:
    """Event files in RUN/tensorboard; the horizontal axis is the number of labels."""
    from torch.utils.tensorboard import SummaryWriter

    # purge_step: what an earlier command wrote of this trial is not shown beside this.
    writer = SummaryWriter(
        str(directory / "tensorboard" / f"{strategy}-trial{trial + 1}"), purge_step=0
    )

    def log(row: RoundRow) -> None:
        for measure, value in _measured(row).items():
            writer.add_scalar(measure, value, row.labels)
        writer.flush()

    return log, writer.close


def _wandb(config: Config, directory: Path, strategy: str, trial: int) -> tuple[OnRound, Close]:
    """Runs of the project `fastbadge`, grouped by run directory; WANDB_MODE=offline works."""
    import wandb

    run = wandb.init(
        project="fastbadge",
        group=directory.name,
        job_type=strategy,
        name=f"{strategy} trial {trial + 1}",
        config=asdict(config) | {"strategy": strategy, "trial": trial},
        dir=str(directory),
        # Trials run side by side, and so do their runs.
        reinit="create_new",
        settings=wandb.Settings(silent=True),
    )
    run.define_metric("*", step_metric="labels")
    return lambda row: run.log({"labels": row.labels, **_measured(row)}), run.finish


def _mlflow(config: Config, directory: Path, strategy: str, trial: int) -> tuple[OnRound, Close]:
    """Runs of the experiment `fastbadge`, at the tracking server that MLflow is set to."""
    import mlflow

    # The client rather than mlflow.start_run, which knows one run at a time.
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fastbadge")
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment("fastbadge")
    )
    run_id = client.create_run(
        experiment_id,
        run_name=f"{directory.name} {strategy} trial {trial + 1}",
        tags={"directory": str(directory), "strategy": strategy, "trial": str(trial)},
    ).info.run_id
    for name, value in asdict(config).items():
        client.log_param(run_id, name, value)

    def log(row: RoundRow) -> None:
        for measure, value in _measured(row).items():
            client.log_metric(run_id, measure, value, step=row.labels)

    return log, lambda: client.set_terminated(run_id)


LOGGERS: dict[str, Open] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _measured(row: RoundRow) -> dict[str, float]:
    return {name: getattr(row, name) for name in _MEASURES}
