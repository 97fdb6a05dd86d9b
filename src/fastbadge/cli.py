"""The command line: parse, call, print."""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter, Token
from rich.console import Console
from rich.table import Table

from fastbadge.errors import FastbadgeError, InputError, RunError
from fastbadge.gradients import Task
from fastbadge.interrupts import none_lost

if TYPE_CHECKING:
    from fastbadge.lab.protocol import Config
    from fastbadge.lab.store import RoundRow, Run

app = App(
    name="fastbadge",
    help="Which examples to label next, and how many labels that saves.\n\n"
    "fastbadge COMMAND --help says what a command takes.",
    version=version("fastbadge"),
    default_parameter=Parameter(show_default=False),  # the texts tell them, in words
)

app.command("fastbadge.label.cli:app", name="label")  # loaded when it is called


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return launch(app, argv)


def launch(command: App | Callable[..., None], argv: Sequence[str] | None = None) -> int:
    """Run a command so that users see one line where something is wrong, and no traceback.

    Returns:
        0; 2 for what the user has to change; 130 after Ctrl-C; 1 where nobody reads the output.
    """
    if not isinstance(command, App):
        command = App(default_command=command)
    command.help_format = "markdown"
    command.suppress_keyboard_interrupt = False
    _open_closed_streams()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            tokens = sys.argv[1:] if argv is None else argv
            _check_none_empty(tokens)
            with none_lost():
                command(tokens, exit_on_error=False, print_error=False, result_action="return_none")
            sys.stdout.flush()
            return 0
        except (FastbadgeError, CycloptsError) as error:
            return _complain(str(error), 2)
        except BrokenPipeError:
            # Python flushes stdout once more when it ends: give it somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            return _complain(str(error).partition("] ")[2] or str(error), 2)
        except (MemoryError, RuntimeError) as error:
            # torch has a class of its own for want of memory on a GPU only.
            if not re.search("out of memory|allocate", str(error) or "out of memory"):
                raise
            reason = str(error).partition("\n")[0]
            return _complain(f"too large for the memory of this machine: {reason}", 2)
        except KeyboardInterrupt as error:
            return _complain(str(error) or "stopped", 130)


def _check_none_empty(tokens: Sequence[str]) -> None:
    """Refuse --out "$DIR" of a variable that is not set: an empty path is where one is."""
    for before, token in pairwise(["", *tokens]):
        if token == "" or re.fullmatch(r"--[\w-]+=", token):
            flag = token.rstrip("=") or (before if before.startswith("-") else "an argument")
            raise InputError(f"{flag} is empty; pass a value, or leave it out")


def _comma_separated(convert: Callable[[str], Any]) -> Parameter:
    def split(_: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
        parts = ",".join(token.value for token in tokens).split(",")
        return tuple(convert(part.strip()) for part in parts if part.strip())

    return Parameter(converter=split, n_tokens=1, negative=(), metavar="A,B")


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """An int as Python reads it; cyclopts of its own accord would round 3.5."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


Whole = Annotated[int, Parameter(converter=_whole, n_tokens=1)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run may have otherwise than its protocol; None keeps the protocol's.

    Args:
        strategies: Names, comma-separated (see: fastbadge strategies). Default: badge,random.
        trials: Repetitions, each with its own initial labels and weights. Default: 5.
        rounds: Queries after the initial labels. Default: 10.
        initial_labels: Examples labelled at random at first. Default: digits 20, MNIST 100.
        query_size: Examples that each query adds. Default: digits 20, MNIST 100.
        seed: Every random number derives from it. Default: 0.
        model: mlp, linear, resnet18, vgg11, or MODULE:FUNCTION of yours. Default: mlp.
        hidden: Widths of the MLP's hidden layers, comma-separated. Default: 128,64.
        dropout: Share of each hidden layer that training drops. Default: 0.
        learning_rate: That of Adam. Default: digits 1e-3, MNIST 1e-4.
        train_batch: Examples in one step of training. Default: 100.
        max_epochs: Training ends after at most so many epochs. Default: digits 300, MNIST 100.
        stop_accuracy: Training ends at this accuracy on the labelled examples. Default: 0.99.
        clip_norm: The gradient of a step is scaled down to this norm (0: never). Default: 1.
        device: Where tensors live: cpu or cuda. Default: cpu.
        threads: Threads of torch in each process. Default: 1.
    """

    strategies: Annotated[tuple[str, ...] | None, _comma_separated(str)] = None
    trials: Whole | None = None
    rounds: Whole | None = None
    initial_labels: Annotated[
        int | None,
        Parameter(name=["--initial", "--initial-labels"], converter=_whole, n_tokens=1),
    ] = None
    query_size: Annotated[
        int | None, Parameter(name=["--query", "--query-size"], converter=_whole, n_tokens=1)
    ] = None
    seed: Whole | None = None
    model: str | None = None
    hidden: Annotated[tuple[int, ...] | None, _comma_separated(int)] = None
    dropout: float | None = None
    learning_rate: float | None = None
    train_batch: Whole | None = None
    max_epochs: Whole | None = None
    stop_accuracy: float | None = None
    clip_norm: float | None = None
    device: str | None = None
    threads: Whole | None = None


@app.command
def run(
    *,
    dataset: str | None = None,
    protocol: str | None = None,
    config: Path | None = None,
    settings: Settings | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    jobs: Whole | None = None,
    loggers: Annotated[tuple[str, ...], Parameter(name="--logger"), _comma_separated(str)] = (),
    dask: str | None = None,
) -> None:
    """Compare strategies on labelled data: BADGE against random on real digits by default.

    A run that was stopped resumes with the same command; a finished one is shown again at once.

    Args:
        dataset: See: fastbadge datasets. Default: digits, or what the protocol is for.
        protocol: digits, classic or paper (Ash et al. 2020). Default: what suits the data set.
        config: TOML file of settings, such as the config.toml of a run; flags go before it.
        settings: What differs from the protocol.
        data_dir: Where the data set's files are. What is not there is downloaded to the cache.
        out: Run directory. Default: runs/ and a name made of the data set and of what differs
            from its protocol. A run given more trials or strategies is extended.
        jobs: Processes. Default: one for each processor core; for a GPU one, which trains all
            trials of a strategy together.
        dask: Address of the scheduler of a Dask cluster that computes instead, such as
            tcp://HOST:8786; needs fastbadge[cluster], and data_dir on its workers' hosts.
        loggers: Where rounds are sent as they finish: tensorboard, wandb, mlflow,
            comma-separated; each needs the extra of its name.
    """
    from fastbadge.files import write_whole
    from fastbadge.lab.configfile import FILE_NAME, as_toml, read_toml
    from fastbadge.lab.protocol import config_for, deviations

    flags = asdict(settings or Settings()) | {"dataset": dataset, "protocol": protocol}
    given = {name: value for name, value in flags.items() if value is not None}
    chosen = config_for(**((read_toml(config) if config else {}) | given))
    directory = out or _default_directory(chosen)
    finished = _run(chosen, directory, data_dir=data_dir, jobs=jobs, dask=dask, loggers=loggers)
    kept = os.access(directory, os.W_OK)  # else it was finished before, and is shown again
    _show_run(finished, directory if kept else None)
    for line in deviations(chosen):
        print(f"Differs from what was published: {line}")
    if kept:
        write_whole(directory / FILE_NAME, as_toml(chosen))
    shown = shlex.quote(str(directory))
    print(f"Run: {directory}; its rows: fastbadge export {shown} --csv FILE")


@app.command
def paper(
    *,
    datasets: Annotated[tuple[str, ...] | None, _comma_separated(str)] = None,
    models: Annotated[tuple[str, ...] | None, _comma_separated(str)] = None,
    query_sizes: Annotated[tuple[int, ...] | None, _comma_separated(int)] = None,
    strategies: Annotated[tuple[str, ...] | None, _comma_separated(str)] = None,
    trials: Whole | None = None,
    rounds: Whole | None = None,
    seed: Whole | None = None,
    learning_rate: float | None = None,
    max_epochs: Whole | None = None,
    clip_norm: float | None = None,
    device: str | None = None,
    data_dir: Path | None = None,
    out: Path = Path("runs/paper"),
    jobs: Whole | None = None,
    dask: str | None = None,
) -> None:
    """Run the grid of the BADGE paper (Ash et al. 2020), as far as there are data for it.

    Each data set, model and size of queries is a run in a directory of its own, which plot, report
    and export take. The page at the end is over all runs in the directory, those of earlier
    commands too. What was stopped resumes with the same command.

    Args:
        datasets: Comma-separated. Default: the paper's mnist, svhn, cifar10 and openml:6, 155, 156
            and 184. What can neither be found nor downloaded is left out.
        models: Only these, comma-separated. Default: what the paper runs: mlp, and resnet18 and
            vgg11 on svhn and cifar10 (days without a GPU).
        query_sizes: Comma-separated. Default: 100,1000,10000.
        strategies: Comma-separated. Default: the paper's badge, coreset, least_confidence, margin,
            entropy, albl and random.
        trials: Repetitions. Default: 5.
        rounds: Queries after 100 initial labels, at most. Default: 32 of 100, 16 of 1,000, 4 of
            10,000, and fewer where the pool ends.
        seed: Every random number derives from it. Default: 0.
        learning_rate: Of Adam. Default: 1e-3 on images, 1e-4 on tables.
        max_epochs: Training of a round ends here, or at 99 % on the labelled examples. Default:
            1000.
        clip_norm: The gradient of a step is scaled down to this norm. Default: 0, which is never.
        device: cpu or cuda. Default: cpu.
        data_dir: Where the data sets' files are. What is not there is downloaded to the cache.
        out: Directory of the runs, and of the report.
        jobs: Processes. Default: as of run.
        dask: Address of the scheduler of a Dask cluster that computes instead; see run.
    """
    from fastbadge.files import write_whole
    from fastbadge.lab.configfile import FILE_NAME, as_toml
    from fastbadge.lab.paper import paper_grid, runs_in, setting_name
    from fastbadge.lab.protocol import deviations
    from fastbadge.lab.report import ranking, render_report

    grid = paper_grid(
        datasets or (),
        models or (),
        query_sizes or (),
        data_dir=data_dir,
        strategies=strategies,
        trials=trials,
        rounds=rounds,
        seed=seed,
        learning_rate=learning_rate,
        max_epochs=max_epochs,
        clip_norm=clip_norm,
        device=device,
    )
    for line in grid.left_out:
        _complain(f"left out: {line}", 0)
    if not grid.settings:
        raise InputError("there are no data for any setting; pass --datasets and --data-dir")
    differs: dict[str, None] = {}
    failed = 0
    for i, chosen in enumerate(grid.settings):
        directory = out / setting_name(chosen)
        print(f"Setting {i + 1} of {len(grid.settings)}: {directory}", file=sys.stderr)
        try:
            _run(chosen, directory, data_dir=data_dir, jobs=jobs, dask=dask, resumes=out)
        except RunError as error:  # the others can go on
            failed += 1
            _complain(str(error), 0)
        else:
            write_whole(directory / FILE_NAME, as_toml(chosen))
            differs |= dict.fromkeys(deviations(chosen))
    runs = runs_in(out)
    for line in differs:
        print(f"Differs from what was published: {line}")
    if not runs:
        raise RunError(f"no setting has a finished round in {out}; see the lines above")
    print(ranking([run.rows for run in runs.values()]))
    command = shlex.join(["fastbadge", "report", *map(str, runs)])
    page = out / "report.html"
    write_whole(page, render_report(list(runs.values()), data_dir=data_dir, command=command))
    print(f"Report: {page}")
    if failed:
        raise RunError(f"{failed} of {len(grid.settings)} settings failed; see the lines above")


@app.command
def plot(
    run_directory: Path,
    /,
    *others: Path,
    out: Path | None = None,
    formats: Annotated[tuple[str, ...], Parameter(name="--format"), _comma_separated(str)] = (
        "png",
        "svg",
    ),
) -> None:
    """Show a run's table again and draw its pictures; of several runs those of the comparison.

    Args:
        run_directory: The --out of a run, finished or not.
        others: Further runs. Then the penalty matrix and the distribution of errors over all of
            them are drawn.
        out: Where the pictures go. Default: the run directory; of several runs, where you are.
        formats: Some of png, svg and pdf, comma-separated. Default: png,svg.
    """
    from fastbadge.lab.store import read_run

    if not others:
        _show_run(read_run(run_directory), out or run_directory, formats)
        return
    from fastbadge.lab.plots import write_setting_plots

    settings = [read_run(directory).rows for directory in (run_directory, *others)]
    directory = out or Path()
    with _pictures_to(directory):
        written = write_setting_plots(settings, directory, formats=formats)
    print(_pictures(written))


@app.command
def report(
    run_directory: Path,
    /,
    *others: Path,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    data_dir: Path | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write one HTML page about one or several runs that needs no network and no other file.

    Args:
        run_directory: The --out of a run, finished or not.
        others: Further runs, of other data sets or models: a penalty matrix sums them up.
        out: File to write. Default: report.html in the run directory; of several runs, where you
            are.
        data_dir: Where the data sets' files are, to show which classes and pictures were picked.
        force: Overwrite a file that is there.
    """
    from fastbadge.files import check_new, check_not_input, write_whole
    from fastbadge.lab.report import render_report
    from fastbadge.lab.store import FILE_NAME, read_run

    directories = (run_directory, *others)
    runs = [read_run(directory) for directory in directories]
    path = out or (Path() if others else run_directory) / "report.html"
    check_not_input(path, [directory / FILE_NAME for directory in directories])
    # A run's own page may be made again and again, like its pictures.
    check_new(path, force=force or (out is None and not others))
    command = shlex.join(["fastbadge", "report", *map(str, directories)])
    write_whole(path, render_report(runs, data_dir=data_dir, command=command))
    print(f"Report: {path}")


@app.command
def export(
    run_directory: Path,
    /,
    *,
    csv: Path | None = None,
    json: Path | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write a run's rows, one a round, for other programs.

    Args:
        run_directory: The --out of a run, finished or not.
        csv: File for the rows; accuracy is 0..1, times are seconds.
        json: File for the same rows with configuration and environment.
        force: Overwrite files that are there.
    """
    from fastbadge.files import check_new, write_whole
    from fastbadge.lab.export import as_csv, as_json
    from fastbadge.lab.store import FILE_NAME, read_run

    if csv is not None and json is not None and os.path.realpath(csv) == os.path.realpath(json):
        raise InputError(f"--csv and --json are both {csv}; pass two names")
    wanted = [(path, render) for path, render in ((csv, as_csv), (json, as_json)) if path]
    if not wanted:
        raise InputError("nothing to write; pass --csv FILE, --json FILE or both")
    recorded = read_run(run_directory)
    for path, _ in wanted:
        if os.path.realpath(path) == os.path.realpath(run_directory / FILE_NAME):
            raise InputError(f"{path} is the record of the run; pass another name")
        check_new(path, force=force)
    for path, render in wanted:
        write_whole(path, render(recorded))


@app.command
def select(
    *,
    k: Annotated[int, Parameter(name="-k", converter=_whole, n_tokens=1)],
    probabilities: Path | None = None,
    features: Path | None = None,
    strategy: str = "badge",
    labeled: Path | None = None,
    task: Task | None = None,
    include_bias: Annotated[bool, Parameter(negative=())] = False,
    seed: Whole | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    force: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Choose what to label next from arrays that a model of any framework has written.

    Prints or writes positions (rows of the arrays, from 0) in order of choice, under the header
    `position`. The arrays may be larger than memory: they are read a few rows at a time.

    Args:
        k: How many to choose.
        probabilities: .npy file, [N, C]: predicted probabilities, one row an example.
        features: .npy file, [N, D]: the inputs of the model's last layer. A strategy that needs
            gradients, as badge does, needs both files.
        strategy: See: fastbadge strategies. Default: badge.
        labeled: Positions labelled already: .npy file, or text with one a line (such as the
            output of this command).
        task: multilabel where each column is a probability of its own (sigmoid). Default:
            multiclass (softmax), or binary for a single column.
        include_bias: Count the gradient of the last layer's bias too; the paper does not.
        seed: The same seed gives the same choice. Default: another each time.
        out: File to write. Default: print.
        force: Overwrite a file that is there.
    """
    from fastbadge.files import (
        check_new,
        check_not_input,
        read_array,
        read_positions,
        write_whole,
    )
    from fastbadge.select import select_from_arrays

    _check_arrays_suffice(strategy, probabilities, features)
    if out is not None:
        check_not_input(out, (probabilities, features, labeled))
        check_new(out, force=force)
    picked = select_from_arrays(
        None if probabilities is None else read_array(probabilities),
        None if features is None else read_array(features),
        k,
        strategy=strategy,
        labeled=None if labeled is None else read_positions(labeled),
        task=task,
        include_bias=include_bias,
        seed=seed,
        progress=True,
    )
    text = "".join(f"{line}\n" for line in ["position", *picked.tolist()])
    if out is None:
        sys.stdout.write(text)
        return
    try:
        write_whole(out, text)
    except InputError as error:  # the disk has filled up meanwhile
        sys.stdout.write(text)
        raise InputError(f"{error}; the positions are printed instead") from error


@app.command
def datasets() -> None:
    """List the data sets that runs know."""
    from fastbadge.lab.datasets import dataset_names

    _print_table(["data set", "what it is"], dataset_names())


@app.command
def strategies() -> None:
    """List the strategies, with what each needs of the model.

    gradients are made of probabilities and features, the inputs of the last layer. samples are
    draws of the model's dropout; labeled strategies look at what is labelled already too, and
    those with a memory at their earlier queries.

    What stands as name=value behind the text is an option, set with the strategy's name, such as
    `badge_subset:candidates=2000`.
    """
    from fastbadge.strategies import get_strategy, strategy_names

    found = [get_strategy(name) for name in strategy_names()]
    rows = [(entry.name, ", ".join(sorted(entry.needs)) or "-", entry.summary) for entry in found]
    _print_table(["strategy", "needs", "what it chooses"], rows)


def _run(
    config: Config,
    directory: Path,
    *,
    data_dir: Path | None,
    jobs: int | None,
    dask: str | None,
    loggers: Sequence[str] = (),
    resumes: Path | None = None,
) -> Run:
    """Run an experiment under the eyes of the user; `resumes` is what they would say it is."""
    from joblib import cpu_count

    from fastbadge.lab.experiment import run_experiment
    from fastbadge.lab.loggers import log_rounds
    from fastbadge.lab.progress import follow

    console = Console(stderr=True)
    at_a_time = jobs or (cpu_count() if config.device == "cpu" else 1)
    try:
        with (
            log_rounds(loggers, config, directory) as log,
            follow(config, console, jobs=at_a_time) as show,
        ):

            def on_round(row: RoundRow) -> None:
                show(row)
                log(row)

            return run_experiment(
                config, directory, data_dir=data_dir, jobs=jobs, dask=dask, on_round=on_round
            )
    except KeyboardInterrupt as stop:
        where = resumes or directory
        raise KeyboardInterrupt(f"stopped; the same command resumes {where}") from stop


def _check_arrays_suffice(strategy: str, probabilities: Path | None, features: Path | None) -> None:
    """Refuse, in terms of the flags, a strategy that needs more than was passed."""
    from fastbadge.strategies import get_strategy

    needs = get_strategy(strategy).needs
    for need, reason, call in (
        ("samples", "runs the model's dropout", "select"),
        ("memory", "learns from labels and earlier queries", "select_from_arrays"),
    ):
        if need in needs:
            raise InputError(
                f"strategy {strategy!r} {reason}, which files do not hold; choose another one or "
                f"call fastbadge.{call} in Python"
            )
    missing = [
        flag
        for flag, path, uses in (
            ("--probabilities", probabilities, {"probabilities", "gradients"}),
            ("--features", features, {"features", "gradients"}),
        )
        if path is None and needs & uses
    ]
    if missing:
        raise InputError(f"strategy {strategy!r} needs {' and '.join(missing)}; pass a file")
    if probabilities is None and features is None:
        raise InputError("no rows to choose from; pass a file with --probabilities or --features")


def _default_directory(config: Config) -> Path:
    from fastbadge.lab.protocol import config_for

    # What differs from the protocol is the name, so another configuration is another directory.
    protocol = asdict(config_for(config.dataset, protocol=config.protocol))
    parts = [config.dataset]
    if config.protocol != config_for(config.dataset).protocol:
        parts.append(config.protocol)
    for name, value in asdict(config).items():
        if value != protocol[name]:
            shown = "+".join(map(str, value)) if isinstance(value, tuple) else value
            parts.append(f"{name}_{shown}")
    return Path("runs", re.sub(r"[^\w.+-]", "_", "-".join(parts)))


def _show_run(run: Run, pictures: Path | None, formats: Sequence[str] = ("png", "svg")) -> None:
    from fastbadge.lab.plots import write_plots
    from fastbadge.lab.summary import heading, savings_sentence, summary_table

    print(heading(run))
    _console().print(summary_table(run))
    if sentence := savings_sentence(run):
        print(sentence)
    if pictures is None:
        print("Pictures: none, the run cannot be written to; fastbadge plot RUN --out DIR")
        return
    with _pictures_to(pictures):
        written = write_plots(run.rows, pictures, title=run.config.dataset, formats=formats)
    print(_pictures(written))


@contextmanager
def _pictures_to(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"no picture could be written to {directory}: {error.strerror}; pass a directory that "
            "can be written to with: fastbadge plot RUN --out DIR"
        ) from error


def _pictures(written: Sequence[Path]) -> str:
    """Where the pictures are, each named once with the endings it has besides."""
    first, *others = dict.fromkeys(path.suffix for path in written)
    shown = " and ".join(str(path) for path in written if path.suffix == first)
    also = f", each also as {' and '.join(others)}" if others else ""
    return f"Pictures: {shown}{also}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():  # a row is a line, for grep
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            print("  ".join(map(str.ljust, row, widths)).rstrip())
        return
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _open_closed_streams() -> None:
    """Give a command whose stdout or stderr is closed (`>&-`) another, where Python has None.

    That for stdout is a pipe that nobody reads, and ends a command like any other such pipe.
    """
    if sys.stdout is None:
        reader, writer = os.pipe()
        os.close(reader)
        sys.stdout = open(writer, "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def _complain(text: str, status: int) -> int:
    with suppress(OSError):  # where nobody hears it the status still tells
        print(f"fastbadge: {' '.join(text.splitlines())}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}", 0)
