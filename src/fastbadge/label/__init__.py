"""Label your own data: the active-learning loop with people as the oracle.

A project is a directory. Its truth is one SQLite file (`schema.py` has the tables, with a comment
on every column): `item`, `class`, `batch` and `batch_item` (what was chosen, and why), `label` (one
row a click, never removed), `assignment` (who has what on the screen), `model`. Beside it lie the
features, which can be made again.

`server.py` puts it on a page, `background.py` runs the rounds meanwhile, `guard.py` lets people in.
What a server calls, all with the project's directory first, from any thread or process, each one
committed transaction:

    schema.kept_open(directory)                     a context manager around the server's life
    clicks.next_items(directory, annotator, n)      items to show, leased; [] if none at the moment
    clicks.record_label(directory, item, class_id, annotator, request=UUID, seconds=...)
    clicks.record_cannot_tell(directory, item, annotator, request=UUID, seconds=...)
    clicks.skip(directory, item, annotator, request=UUID, seconds=...)
    clicks.undo(directory, annotator, request=UUID) the click taken back, or None
    clicks.release(directory, annotator)
    project.read_config, read_classes, add_class, read_item, read_pick (the guess), read_status,
        read_disputes, count_waiting
    sources.read_image(source, item)                the content of an image, checked;
                                                    images.as_shown makes it one for browsers
    rounds.advance(directory)                       train, measure, choose the next batch: in the
                                                    background, when count_waiting gets small
    numbers.read_numbers(directory)                 accuracy, interval, recall, confusion, curve,
                                                    forecast, and the words for them

What has to do with files: initialise.init_project, exchange.import_labels, export_rows, as_csv,
as_jsonl and export_folder; audit.find_doubts lists labels for a second look.

studio/ is the same loop with Label Studio as the page.

Errors are FastbadgeErrors of one line: InputError for what a caller passed (404 or 400),
ProjectError for a project that cannot be used (500, and on the command line exit status 2).
"""
