"""The pictures: what is in them, which files they are, and that they come out the same."""

import random
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from fastbadge.errors import InputError
from fastbadge.lab.penalty import error_cdf, penalty_matrix
from fastbadge.lab.plots import (
    LOOKS,
    OTHER_LOOKS,
    display_name,
    draw_error_cdf,
    draw_learning_curves,
    draw_penalty_matrix,
    draw_query_time,
    show_learning_curves,
    write_plots,
    write_setting_plots,
)
from fastbadge.lab.statistics import labels_saved, labels_saved_interval, learning_curve
from fastbadge.lab.store import RoundRow
from fastbadge.strategies import strategy_names


def rows_of(*strategies, trials=3, rounds=5, seconds=None):
    draw = random.Random(1)
    seconds = seconds or {}
    return [
        RoundRow(
            strategy,
            trial,
            round,
            100 + 100 * round,
            0.5 + 0.08 * round - 0.05 * (strategy == "random") * round + 0.02 * draw.random(),
            0.5,
            1.0,
            seconds.get(strategy, 0.01),
            0.1,
            (1, 2) if round < rounds else (),
        )
        for strategy in strategies
        for trial in range(trials)
        for round in range(rounds + 1)
    ]


def lines_of(figure: Figure):
    (axes,) = figure.axes
    return {line.get_label(): line for line in axes.get_lines()}


def test_a_run_of_badge_and_random(tmp_path):
    written = write_plots(rows_of("badge", "random"), tmp_path, title="digits")
    names = ["badge_vs_random_comparison", "query_time"]
    assert [path.name for path in written] == [f"{n}.{e}" for n in names for e in ("png", "svg")]
    for path in written[::2]:
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in written[1::2]:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_any_other_run(tmp_path):
    written = write_plots(rows_of("badge", "random", "margin"), tmp_path)
    assert {path.stem for path in written} == {"learning_curves", "query_time"}


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = rows_of("badge", "random")
    for directory in (tmp_path / "a", tmp_path / "b"):
        directory.mkdir()
        write_plots(rows, directory, title="digits")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_every_format_comes_out_the_same_each_time(tmp_path):
    rows = rows_of("badge", "random", rounds=9)
    for directory in (tmp_path / "a", tmp_path / "b"):
        directory.mkdir()
        written = write_plots(rows, directory, formats=("pdf",))
        written += write_setting_plots([rows, rows], directory, formats=("pdf",))
    assert len(written) == 2 + 2
    for path in written:
        drawn = path.read_bytes()
        assert drawn == (tmp_path / "a" / path.name).read_bytes()
        assert drawn.startswith(
            {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}[path.suffix]
        )


@pytest.mark.parametrize("formats", [(), ("gif",), ("png", "PDF")])
def test_unknown_formats(formats, tmp_path):
    with pytest.raises(InputError, match="expected some of png, svg, pdf"):
        write_plots(rows_of("badge"), tmp_path, formats=formats)
    assert not list(tmp_path.iterdir())


def test_the_penalty_matrix_shows_its_numbers_and_what_is_missing():
    settings = [
        rows_of("badge", "random", "margin", rounds=9),
        rows_of("badge", "random", rounds=9),
    ]
    penalty = penalty_matrix(settings)
    (axes,) = draw_penalty_matrix(settings).axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    for i in range(3):
        for j in range(3):
            cell = penalty.cells[i][j]
            assert texts[j, i] == ("" if i == j else f"{cell:.2f}")
    assert [texts[j, 3] for j in range(3)] == ["\N{EN DASH}"] * 3  # margin lacks a setting
    (common,) = draw_penalty_matrix([rows_of("badge", "random", rounds=9)]).axes
    assert "\N{EN DASH}" not in {text.get_text() for text in common.texts}
    with pytest.raises(InputError, match="no setting has budgets"):
        draw_penalty_matrix([rows_of("badge", "margin")])


def test_the_cdf_steps_where_the_errors_are():
    settings = [rows_of("badge", "random", rounds=9)]
    lines = lines_of(draw_error_cdf(settings))
    for strategy, steps in error_cdf(settings).items():
        line = lines[display_name(strategy)]
        assert line.get_drawstyle() == "steps-post"
        np.testing.assert_allclose(line.get_xdata()[1:-1], [step.error for step in steps])
        np.testing.assert_allclose(line.get_ydata()[1:-1], [step.share for step in steps])
    with pytest.raises(InputError, match="no setting has budgets"):
        draw_error_cdf([])


def test_settings_are_drawn_for_the_strategies_that_all_have(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("fastbadge.lab.plots.draw_penalty_matrix", lambda s: drawn.append(s))
    settings = [
        rows_of("badge", "random", "margin", rounds=9),
        rows_of("random", "badge", rounds=9),
    ]
    with pytest.raises(AttributeError):  # there is no figure to save
        write_setting_plots(settings, tmp_path)
    assert [{row.strategy for row in rows} for rows in drawn[0]] == [{"badge", "random"}] * 2


def test_png_is_drawn_at_200_dpi(tmp_path):
    from PIL import Image

    png, *_ = write_plots(rows_of("badge", "random"), tmp_path)
    with Image.open(png) as image:
        assert image.size == (1040, 700)
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_curves_show_the_means_in_percent_and_the_band_their_standard_error():
    rows = rows_of("badge", "random")
    figure = draw_learning_curves(rows, title="digits")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Labelled examples"
    assert axes.get_ylabel() == "Test accuracy (%)"
    assert axes.get_title(loc="left") == "digits: mean ± standard error of 3 trials"
    for (strategy, curve), band in zip(learning_curve(rows).items(), axes.collections, strict=True):
        line = lines_of(figure)[display_name(strategy)]
        assert line.get_color() == LOOKS[strategy].color
        assert line.is_dashed() == bool(LOOKS[strategy].dash)
        np.testing.assert_allclose(line.get_xdata(), [p.labels for p in curve])
        np.testing.assert_allclose(line.get_ydata(), [100 * p.mean for p in curve])
        edges = band.get_paths()[0].vertices
        for point in curve:
            at = edges[edges[:, 0] == point.labels, 1]
            assert at.max() == pytest.approx(100 * (point.mean + point.stderr))
            assert at.min() == pytest.approx(100 * (point.mean - point.stderr))


def test_the_arrow_says_how_many_labels_are_saved_where_there_are_two_curves():
    rows = rows_of("badge", "random")
    saved = labels_saved(rows, "badge", "random")
    texts = [text.get_text() for text in draw_learning_curves(rows).axes[0].texts]
    assert labels_saved_interval(rows, "badge", "random").low > 0
    assert f"{saved.labels_b - saved.labels_a:.0f} labels saved" in texts
    # One trial cannot be sure of it.
    texts = [
        t.get_text()
        for t in draw_learning_curves(rows_of("badge", "random", trials=1)).axes[0].texts
    ]
    assert any(text.endswith(" labels fewer") for text in texts)
    assert not draw_learning_curves(rows_of("badge", "random", "margin")).axes[0].texts
    other = {"badge": "random", "random": "badge"}
    swapped = [replace(row, strategy=other[row.strategy]) for row in rows]
    assert labels_saved(swapped, "badge", "random").labels_a is None
    assert not draw_learning_curves(swapped).axes[0].texts


def test_one_trial_has_no_spread():
    figure = draw_learning_curves(rows_of("badge", trials=1))
    assert figure.axes[0].get_title(loc="left") == "One trial"


def test_more_points_than_ticks_fit():
    figure = draw_learning_curves(rows_of("badge", rounds=40))
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) < 15
    assert all(float(tick).is_integer() for tick in ticks)


def test_query_time_in_a_fitting_unit_and_scale():
    near = draw_query_time(rows_of("badge", "margin", seconds={"badge": 0.002, "margin": 0.001}))
    assert near.axes[0].get_ylabel() == "Time per query (ms)"
    assert near.axes[0].get_yscale() == "linear"
    np.testing.assert_allclose(lines_of(near)["BADGE"].get_ydata(), 2.0)
    far = draw_query_time(rows_of("badge", "random", seconds={"badge": 70.0, "random": 0.001}))
    assert far.axes[0].get_ylabel() == "Time per query (s)"
    assert far.axes[0].get_yscale() == "log"
    assert len(lines_of(far)["BADGE"].get_xdata()) == 5  # the last round chose nothing
    assert [tick.get_text() for tick in far.axes[0].get_yticklabels()].count("10") == 1


def test_rows_without_a_query_have_no_picture_of_it(tmp_path):
    rows = rows_of("badge", rounds=0)
    assert {path.stem for path in write_plots(rows, tmp_path)} == {"learning_curves"}
    with pytest.raises(InputError, match="no row has a query to draw"):
        draw_query_time(rows)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="no rows to draw"):
        write_plots([], tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_strategy_has_its_own_look():
    shortcuts = {"badge_subset", "badge_proxy"}  # are run under names with options
    assert set(LOOKS) == set(strategy_names()) - shortcuts
    looks = [*LOOKS.values(), *OTHER_LOOKS]
    for part in ("color", "marker"):
        assert len({getattr(look, part) for look in looks}) == len(looks)
    figure = draw_learning_curves(rows_of("mine", "badge", "yours"))
    colors = [line.get_color() for line in lines_of(figure).values()]
    assert colors == [OTHER_LOOKS[0].color, LOOKS["badge"].color, OTHER_LOOKS[1].color]


def test_show_without_a_screen_writes_the_picture(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: pytest.fail("there is no screen"))
    with plt.rc_context({"backend": "agg"}):
        show_learning_curves(rows_of("badge", "random"), tmp_path / "x.png", title="MNIST")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_show_with_a_screen_opens_a_window(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "tk")
    with plt.rc_context({"backend": "agg"}):
        show_learning_curves(rows_of("badge", "random"), tmp_path / "x.png")
    assert shown == [[1]]
