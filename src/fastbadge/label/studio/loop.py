"""The loop: push a batch, take answers back, train, choose the next batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from fastbadge.errors import InputError, ProjectError
from fastbadge.label.numbers import read_numbers
from fastbadge.label.project import (
    Pick,
    count_items,
    count_waiting,
    read_classes,
    read_config,
    read_item,
    update_items,
)
from fastbadge.label.rounds import advance
from fastbadge.label.studio.record import (
    Link,
    begin_link,
    complete_link,
    open_picks,
    take_answers,
)
from fastbadge.label.studio.server import AwayError, GoneError, Server
from fastbadge.label.studio.view import (
    Answer,
    extend_view,
    item_of,
    make_prediction,
    make_task,
    make_view,
    read_annotation,
)
from fastbadge.label.studio.webhook import called
from fastbadge.lock import held

_LOCK_NAME = "studio.lock"
_PUSH = 20  # tasks in one request: 7 MB of images
_LONGEST_WAIT_SECONDS = 60.0
_MODEL_VERSION = "fastbadge"

# Its times are taken before its transactions end: one may show up so much later than its time.
_OVERLAP = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How the loop is run.

    Args:
        prelabel: show people the model's guesses, but for those of validation items.
        image_url: of `view.make_task`.
        poll_seconds: between two looks at what was answered.
        webhook: HOST:PORT on which Label Studio may call before that time is over.
        new_project: make another project there, in place of the one that was used so far.
    """

    prelabel: bool = False
    image_url: str | None = None
    poll_seconds: float = 5.0
    webhook: str | None = None
    new_project: bool = False


def run(directory: Path, server: Server, options: Options, *, say: Callable[[str], None]) -> None:
    """Run the loop until all items are labelled.

    It may be stopped at any moment, and goes on when it is called again. While the server is away
    it waits; only at first that is an error, since the address may be wrong.

    Args:
        directory: of a project of images or texts.
        server: with which the pushed tasks are.
        options: see there.
        say: is told how far it is, in lines.

    Raises:
        InputError: a project that nobody can label there, an option that cannot be.
        ProjectError: another loop is running, the project there was deleted, or as `Server.check`.
    """
    config = read_config(directory)
    if config.kind == "features":
        raise InputError("items are rows of features, which nobody can see; expected images, texts")
    if not read_classes(directory):
        raise InputError("the project has no classes; add some with: label init SOURCE --classes")
    if options.image_url is not None and not (
        config.kind == "images" and ("{name}" in options.image_url or "{item}" in options.image_url)
    ):
        raise InputError(
            f"--image-url is {options.image_url!r} for {config.kind}; expected an address of "
            "images with {name} or {item}"
        )
    if not 0 < options.poll_seconds <= 3600:
        raise InputError(f"--poll is {options.poll_seconds}; expected seconds, up to 3600")
    lock = Path(directory) / _LOCK_NAME
    lock.touch()
    with held(lock, f"another command is serving {directory} to Label Studio", ProjectError):
        try:
            say(f"{server.url} as {server.check()}")
        except AwayError as error:
            raise ProjectError(f"{error}; start Label Studio or pass another --url") from error
        loop = _Loop(directory, server, options, say)
        where = f"{server.url}/projects/{loop.project}"
        say(f"people label at {where}")
        hook = options.webhook
        with called(server, loop.project, hook) if hook else nullcontext(Event()) as event:
            try:
                loop.run(event)
            except GoneError as error:
                raise ProjectError(
                    f"{where} was deleted, or is no longer for this user ({error}); pass "
                    "--new-project to make another"
                ) from error


@dataclass(slots=True)
class _Loop:
    directory: Path
    server: Server
    options: Options
    say: Callable[[str], None]
    batch: int = field(init=False)
    link: Link = field(init=False)
    project: int = field(init=False)  # its id there
    pushed: set[int] = field(default_factory=set)  # items known to have a task
    tasks: dict[int, set[int]] = field(default_factory=dict)  # by item, as far as they were read
    seen: str | None = None  # the latest change that was taken, by the clock there
    emails: dict[int, str] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)  # annotations that were complained of
    classes: dict[int, str] = field(default_factory=dict)  # when that was taken
    idle: bool = False  # nothing was answered since there was nothing to train or choose

    def __post_init__(self) -> None:
        self.batch = read_config(self.directory).batch
        self.link = begin_link(self.directory, anew=self.options.new_project)
        self.project = self._find_or_make()

    def run(self, event: Event) -> None:
        wait = 0.0
        while True:
            try:
                if not self._step():
                    self.say("all items are labelled; run this again to take later changes")
                    return
                if wait:
                    self.say(f"{self.server.url} answers again")
                wait, pause = 0.0, self.options.poll_seconds
            except AwayError as error:
                wait = pause = min(2 * wait or 1.0, _LONGEST_WAIT_SECONDS)
                self.say(f"{error}; trying again in {wait:.0f} s")
                self.pushed.clear()  # whether a push arrived is found out by looking
            event.wait(pause)
            event.clear()

    def _step(self) -> bool:
        """One turn, which may be broken off and begun again anywhere; False when all is done."""
        self._take()
        if not self.idle and count_waiting(self.directory) <= self.batch // 4:
            batch = advance(self.directory)
            self.idle = batch is None
            if batch is not None:
                self.say(read_numbers(self.directory).words)
            elif not count_waiting(self.directory):
                return False
        self._push()
        return True

    def _find_or_make(self) -> int:
        """The project there."""
        config, classes = read_config(self.directory), read_classes(self.directory)
        link = self.link
        if link.project is None:
            place = self.server.find_project(link.marker)
            if place is None:
                name = Path(self.directory).resolve().name
                place = self.server.make_project(
                    f"fastbadge: {name}"[:50],
                    f"Batches chosen by fastbadge. {link.marker}",
                    make_view(config.kind, classes),
                    config.overlap,
                )
            complete_link(self.directory, place.id, place.created)
        else:
            try:
                place = self.server.project(link.project)
            except GoneError:
                place = None
            if place is None or place.created != link.created:
                raise ProjectError(
                    f"{self.server.url} has no project {link.project} of {link.created}; if it was "
                    "deleted or that was another server, pass --new-project"
                )
        return place.id

    def _take(self) -> None:
        """Take what was answered since the last time; at first, or of new classes, all there is.

        An import that got no answer may be carried out when its tasks have been pushed again. So
        after one, and whenever an item turns up in a second task, all tasks are read, and the
        second ones deleted. Only a task that shows up more than _OVERLAP after its time is missed,
        until the next start.
        """
        classes = read_classes(self.directory)
        since = None
        if self.seen and classes == self.classes:
            earlier = datetime.fromisoformat(self.seen) - _OVERLAP
            since = earlier.strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # it reads no other form
        items = count_items(self.directory)
        found: dict[int, tuple[int, list[dict[str, Any]]]] = {}
        latest = self.seen or ""
        for task in self.server.changed_tasks(self.project, since):
            latest = max(latest, task["updated_at"])
            item = item_of(task)
            if item is not None and 0 < item <= items:
                found[task["id"]] = (item, task["annotations"])
        if since is None:
            self.tasks.clear()
        twice = set[int]()
        for id, (item, _) in found.items():
            there = self.tasks.setdefault(item, set())
            if there and id not in there:
                twice.add(item)
            there.add(id)
        if twice and since is not None:
            self.seen = None
            return self._take()
        self._delete_unanswered(twice, {id for id, (_, made) in found.items() if made})
        users = {each["completed_by"] for _, made in found.values() for each in made}
        if not users <= set(self.emails):
            self.emails = dict.fromkeys(users, "") | self.server.emails()
        answers = {
            task: (item, self._answers(task, made, classes)) for task, (item, made) in found.items()
        }
        changed = take_answers(self.directory, self.link.marker, answers) if answers else 0
        self.seen, self.classes = latest, classes
        if changed:
            self.idle = False
            waiting = count_waiting(self.directory)
            self.say(f"{changed:,} answers new, changed or taken back; {waiting:,} items waiting")

    def _delete_unanswered(self, items: set[int], answered: set[int]) -> None:
        """Of the tasks of an item keep those with an annotation, or if there is none the first.

        If somebody answers one in the moment before it is deleted, that answer is lost, and the
        item asked again.
        """
        count = 0
        for item in items:
            tasks = self.tasks[item]
            spare = sorted(tasks - answered)[0 if tasks & answered else 1 :]
            for task in spare:
                self.server.delete_task(task)
            count += len(spare)
        if count:
            self.say(f"{count:,} tasks deleted there: their items had another")

    def _answers(
        self, task: int, made: list[dict[str, Any]], classes: dict[int, str]
    ) -> list[Answer]:
        """What the annotations of a task say; of those that say nothing we know, a line once."""
        id_of = {name: id for id, name in classes.items()}
        answers = []
        for annotation in made:
            try:
                answers.append(read_annotation(annotation, id_of, self.emails))
            except InputError as error:
                if annotation["id"] not in self.refused:
                    self.say(f"task {task}: {error}")
                self.refused.add(annotation["id"])
        return answers

    def _push(self) -> None:
        """Make tasks of the items that wait for an answer and have none."""
        wanted = open_picks(self.directory)
        if all(pick.item in self.pushed for pick in wanted):
            return
        there = {item_of(task) for task in self.server.tasks(self.project)}
        view = self.server.project(self.project).view
        whole = extend_view(view, read_classes(self.directory))
        if whole != view:
            self.server.change_project(self.project, {"label_config": whole})
        tasks = (self._task(pick) for pick in wanted if pick.item not in there)
        new = (task for task in tasks if task is not None)
        count = 0
        while some := list(islice(new, _PUSH)):
            try:
                self.server.add_tasks(self.project, some)
            except AwayError:
                self.seen = None  # see _take
                raise
            count += len(some)
            if any("predictions" in task for task in some):  # before, it knows no such version
                shown = {"show_collab_predictions": True, "model_version": _MODEL_VERSION}
                self.server.change_project(self.project, shown)
        self.pushed = {pick.item for pick in wanted}
        if count:
            self.say(f"{count:,} tasks pushed")

    def _task(self, pick: Pick) -> dict[str, Any] | None:
        """The task of an item; None where its image has gone, which is noted."""
        item = read_item(self.directory, pick.item)
        try:
            task = make_task(item, read_config(self.directory), self.options.image_url)
        except (InputError, OSError) as error:
            self.say(f"item {item.id} is left out: {error}")
            update_items(self.directory, missing=[item.id])
            return None
        # A guess that people see sways them: accuracy is measured on what they say without.
        if self.options.prelabel and pick.predicted is not None and pick.reason != "validation":
            name = read_classes(self.directory)[pick.predicted]
            guess = make_prediction(name, pick.confidence or 0.0, _MODEL_VERSION)
            task["predictions"] = [guess]
        return task
