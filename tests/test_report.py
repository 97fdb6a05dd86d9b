"""The report: what it says, that it holds nothing but itself, and that names cannot break it."""

import base64
import hashlib
import io
import random
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fastbadge.cli import main
from fastbadge.errors import InputError
from fastbadge.lab.datasets import load_dataset
from fastbadge.lab.protocol import Config, config_for, deviations
from fastbadge.lab.report import picks, ranking, render_report
from fastbadge.lab.report.answer import _between, answer, area_tests
from fastbadge.lab.report.charts import HEIGHT, WIDTH, Line, line_chart
from fastbadge.lab.report.html import element, join, table
from fastbadge.lab.report.sections import command
from fastbadge.lab.seeds import seed_for
from fastbadge.lab.statistics import labels_saved, labels_saved_interval
from fastbadge.lab.store import RoundRow, Run

GAIN = {"badge": 0.30, "margin": 0.27, "random": 0.20, "entropy": 0.15, "worst": 0.1}
VOID = {"meta", "link", "img"}


def run_of(*strategies, trials=5, rounds=9, dataset="digits", lacks=lambda row: False, **settings):
    """A run whose curves rise like a square root, with noise; picks are positions in digits."""
    draw = random.Random(2)
    config = Config(
        dataset=dataset, strategies=strategies, trials=trials, rounds=rounds, **settings
    )
    rows = []
    for s in strategies:
        for t in range(trials):
            for r in range(rounds + 1):
                accuracy = 0.3 + GAIN.get(s, 0.2) * (r / max(rounds, 1)) ** 0.5
                accuracy += random.Random(t).gauss(0, 0.01) + (draw.gauss(0, 0.005) if r else 0)
                chosen = draw.sample(range(1297), config.query_size) if r < rounds else ()
                labels = config.initial_labels + r * config.query_size
                rows.append(RoundRow(s, t, r, labels, accuracy, 0.4, 1.0, 0.01, 0.1, tuple(chosen)))
    environment = {"python": "3.11", "processor": "<fast> & good"}
    return Run(config, environment, [row for row in rows if not lacks(row)])


@pytest.fixture(scope="module")
def run():
    return run_of("badge", "random", "margin")


@pytest.fixture(scope="module")
def page(run):
    return render_report([run], command="fastbadge report runs/digits")


class Outline(HTMLParser):
    """Checks that tags nest, and collects what a reader sees."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags, self.attributes = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def seen(self):
        return " ".join(" ".join(self.text).split())


def test_it_holds_every_part(page):
    outline = Outline(page)
    for title in (
        "How many labels does BADGE save against random on digits?",
        "Learning curves",
        "Difference to random",
        "At a glance",
        "Which differences are sure",
        "Time of a query",
        "What each strategy picked first",
        "Classes picked, round by round",
        "Repeat it",
        "Configuration and environment",
        "Penalty matrix",
        "Errors relative to random sampling",
        "Made by fastbadge report runs/digits",
    ):
        assert title in outline.seen
    assert "fastbadge run --dataset digits --strategies badge,random,margin" in outline.seen
    assert "<fast> & good" in outline.seen  # escaped, so read as it is
    assert outline.tags.count("h1") == 1 and outline.tags.count("img") == 3
    assert len(page.encode()) < 200_000


def test_nothing_in_it_leads_elsewhere_and_its_policy_allows_no_more(page):
    outline = Outline(page)
    links = [v for _, name, v in outline.attributes if name in ("src", "href", "action", "data")]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    (policy,) = (v for _, name, v in outline.attributes if name == "content" and "-src" in v)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_the_same_records_give_the_same_page(run, page):
    assert render_report([run], command="fastbadge report runs/digits") == page


def test_names_from_users_cannot_break_it():
    evil = "<script>alert(1)</script>'\"&"
    run = run_of("badge", "random", evil, dataset=f"npz:{evil}.npz", query_size=20)
    html = render_report([run], command=evil)
    outline = Outline(html)
    assert outline.tags.count("script") == 1
    assert evil.capitalize() in outline.seen and f"npz:{evil}.npz" in outline.seen
    assert not [name for _, name, _ in outline.attributes if "alert" in name]


def test_the_answer_carries_its_uncertainty(run):
    first, second, third = answer(run)
    saved = labels_saved(run.rows, "badge", "random")
    interval = labels_saved_interval(run.rows, "badge", "random")
    fewer = saved.labels_b - saved.labels_a
    assert interval.low > 0
    assert first == (
        f"BADGE needs {saved.labels_a:.0f} labels for the {100 * saved.accuracy:.1f} % that random "
        f"ends with, random itself {saved.labels_b:.0f}: {fewer:.0f} "
        f"({100 * fewer / saved.labels_b:.0f} %) saved (95 % interval of the saving "
        f"{interval.low:.0f} to {interval.high:.0f}, 5 paired trials)."
    )
    assert re.fullmatch(
        r"Its accuracy, averaged over the budget, is \d\.\d points above that of random "
        r"\(95 % interval \+\d\.\d to \+\d\.\d, Holm's p (< 0\.001|= 0\.\d+)\)\.",
        second,
    )
    assert third == "No strategy of this run has a higher average than BADGE."


def test_answers_in_other_cases():
    worse = answer(run_of("entropy", "random", "margin"))
    assert re.fullmatch(
        r"entropy does not reach the 5\d\.\d % that random ends with \(95 % interval of the saving "
        r"none, 5 paired trials\)\.",
        worse[0],
    )
    assert "points below that of random" in worse[1]
    assert "The highest average is that of margin" in worse[2]
    assert "points above that of entropy (95 % interval +" in worse[2]
    once = answer(run_of("badge", "random", trials=1))
    assert all("one trial, so the uncertainty is not known" in sentence for sentence in once)
    losing = answer(run_of("entropy", "random", "worst"))
    assert losing[-1] == "No strategy of this run has a higher average than random."
    assert answer(run_of("margin")) == ["margin was run alone, so nothing is compared."]
    begun = answer(run_of("badge", "random", lacks=lambda row: row.round > 2 and row.trial))
    assert "5 paired" not in begun[0]
    nothing = answer(run_of("badge", "random", lacks=lambda row: row.strategy == "random"))
    assert nothing[0].startswith("How many labels BADGE saves against random cannot be said")


def test_a_test_turned_round_is_turned_in_all_its_parts():
    tests = area_tests(run_of("margin", "random").rows)
    (test,), turned = tests, _between(tests, "random", "margin")
    low, high = test.interval
    assert (turned.a, turned.b, turned.mean) == ("random", "margin", -test.mean)
    assert (turned.interval, turned.effect, turned.p) == ((-high, -low), -test.effect, test.p)


def test_no_ranking_says_what_is_missing():
    alone, pair = run_of("badge", "random", trials=1), run_of("badge", "random")
    assert ranking([pair.rows, alone.rows]) == (
        "There is no ranking over all settings: a comparison takes two trials of both strategies "
        "in every setting, which the pair BADGE and random lacks."
    )
    three = run_of("badge", "random", "margin", trials=1)
    assert "the pair BADGE and random lacks (and 2 more)." in ranking([three.rows])
    once = [row for row in pair.rows if row.strategy == "random"]
    assert ranking([once, once]) == "There is no ranking over all settings: there is one strategy."
    assert ranking([run_of("badge", "margin").rows]) == (
        "There is no ranking over all settings: none has budgets, which random sets."
    )


@pytest.mark.parametrize("lacks", [
    lambda row: row.trial == 4 and row.round > 3,
    lambda row: row.strategy == "random" and row.round > 5,
    lambda row: row.strategy == "margin",
    lambda row: row.round > 0,
    lambda row: (row.strategy, row.trial) != ("badge", 0),
], ids=["killed trial", "no random", "strategy to come", "first round", "one trial"])  # fmt: skip
def test_an_unfinished_run_is_shown_as_one(lacks):
    run = run_of("badge", "random", "margin", lacks=lacks)
    outline = Outline(render_report([run]))
    assert f"This run is not finished: {len(run.rows)} of 150 rounds are recorded." in outline.seen
    assert not re.search(r"\bnan\b", outline.seen, re.I)


@pytest.mark.parametrize("settings", [
    {"trials": 1}, {"rounds": 0}, {"rounds": 1}, {"trials": 1, "rounds": 0}, {"rounds": 40},
], ids=str)  # fmt: skip
def test_small_and_large_runs(settings):
    for strategies in (("badge",), ("badge", "random"), ("badge", "margin")):
        Outline(render_report([run_of(*strategies, **settings)]))


def test_no_run_and_no_round(run):
    with pytest.raises(InputError, match="no run to report on"):
        render_report([])
    with pytest.raises(InputError, match="the run on digits has no finished round"):
        render_report([replace(run, rows=[])])


def test_several_runs_are_settings_of_one_matrix(run):
    other = run_of("margin", "random", "badge", "entropy", query_size=10, rounds=17)
    seen = Outline(render_report([run, other, other])).seen
    assert "How many" not in seen  # badge against random here, margin against random there
    assert "Which examples should be labelled next in 3 settings?" in seen
    assert "the lowest penalty over 3 settings" in seen
    assert "digits, batches of 20" in seen and "digits, batches of 10 (2)" in seen
    assert "Left out, because some setting lacks them: Entropy." in seen
    alone = Outline(render_report([run_of("margin", "badge")])).seen
    assert "There is no penalty matrix" in alone


def test_data_that_are_not_at_hand_are_not_fetched(monkeypatch, tmp_path, run):
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path)
    monkeypatch.setattr(picks, "load_dataset", lambda *_, **__: pytest.fail("loaded"))
    seen = Outline(render_report([run_of("badge", "random", dataset="mnist")])).seen
    assert "Not shown: mnist is not in the cache; pass --data-dir" in seen
    monkeypatch.undo()
    changed = Outline(render_report([replace(run, data_digest="another")])).seen
    assert "Not shown: the values of digits have changed since the run." in changed
    gone = Outline(render_report([run_of("badge", "random", dataset="npz:gone.npz")])).seen
    assert "Not shown: gone.npz" in gone


def test_classes_are_those_of_the_pool_of_each_trial(run):
    found = picks.look_up(run, None)
    expected = np.zeros((10, run.config.rounds))
    for t in range(5):
        split = seed_for(0, t, 0, "split")
        y = load_dataset("digits", split_seed=split).y_pool_N
        for row in run.rows:
            if (row.strategy, row.trial) == ("margin", t) and row.picks:
                for position in row.picks:
                    expected[y[position], row.round] += 1 / 5
    np.testing.assert_allclose(found.counts["margin"], expected)
    assert found.class_sizes_C.sum() == 1297


def test_pictures_are_those_of_the_first_picks(run):
    from PIL import Image

    found = picks.look_up(run, None)
    data = load_dataset("digits", split_seed=seed_for(0, 0, 0, "split"))
    first = next(row for row in run.rows if row.strategy == "badge")
    sprite = found.sprites["badge"]
    with Image.open(io.BytesIO(base64.b64decode(sprite.png))) as image:
        assert image.size == (sprite.width, sprite.height) == (10 * 9 - 1, 2 * 9 - 1)
        pixels = np.asarray(image)
    for i in (0, 7, 13, 19):
        tile = pixels[i // 10 * 9 :][:8, i % 10 * 9 :][:, :8]
        expected = 255 * data.x_pool_NF[first.picks[i]].reshape(8, 8).numpy()
        np.testing.assert_allclose(tile, expected, atol=0.51)
        assert sprite.classes[i] == data.y_pool_N[first.picks[i]]


def test_pictures_in_colour_and_fewer_than_a_line():
    image_KCHW = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
    low, high = image_KCHW.min(axis=(0, 2, 3)), image_KCHW.max(axis=(0, 2, 3))
    sprite = picks._sprite(image_KCHW, low, high, np.array([2, 0, 1]))
    assert (sprite.width, sprite.height, sprite.classes) == (3 * 6 - 1, 4, (2, 0, 1))


def test_what_is_an_image():
    digits = load_dataset("digits")
    assert picks.image_shape(digits) == (1, 8, 8)
    assert picks.image_shape(replace(digits, shape=(64,))) is None
    assert picks.image_shape(replace(digits, shape=(2, 8, 4))) is None


def wanted():
    """Any configuration that `config_for` gives, and that a user could type."""
    names = st.lists(st.sampled_from(["badge", "random", "margin", "badge_subset:candidates=2000"]),
                     min_size=1, unique=True)  # fmt: skip
    return st.builds(
        config_for,
        st.sampled_from(["digits", "mnist", "cifar10", "openml:6", "npz:my data/it's.npz"]),
        protocol=st.sampled_from([None, "digits", "classic", "paper"]),
        strategies=st.none() | names,
        trials=st.sampled_from([None, 5, 50]),
        rounds=st.sampled_from([None, 3, 10, 16, 32]),
        initial_labels=st.sampled_from([None, 20, 100]),
        query_size=st.sampled_from([None, 20, 50, 100, 1_000, 10_000]),
        model=st.sampled_from([None, "linear", "my_models:small"]),
        hidden=st.sampled_from([None, (256,), (1024,), (128, 64)]),
        learning_rate=st.none() | st.floats(1e-6, 1),
        train_batch=st.sampled_from([None, 64, 100, 128]),
        max_epochs=st.sampled_from([None, 100, 300, 1_000]),
        stop_accuracy=st.none() | st.floats(0.5, 1),
        clip_norm=st.sampled_from([None, 0.0, 1.0, 2.5]),
        seed=st.none() | st.integers(0, 2**70),
        device=st.sampled_from([None, "cuda:1"]),
    )


def test_the_command_gives_the_same_configuration(monkeypatch):
    ran = []

    def pretend(config, *_, **__):
        ran.append(config)
        raise InputError("enough")

    monkeypatch.setattr("fastbadge.lab.experiment.run_experiment", pretend)

    @hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @hypothesis.example(config_for("digits", protocol="paper", query_size=1_000, rounds=10))
    @hypothesis.example(config_for("mnist", protocol="paper", learning_rate=1e-4))
    @hypothesis.given(wanted())
    def check(config):
        fastbadge, *words = shlex.split(command(config))
        assert (fastbadge, main([*words, "--out", "there"])) == ("fastbadge", 2)
        assert ran.pop() == config

    check()


def test_the_configuration_is_measured_by_its_own_protocol(monkeypatch):
    monkeypatch.setattr("fastbadge.lab.report.page.look_up", lambda *_: "picks of other rounds")
    config = config_for("digits", protocol="paper", query_size=1_000, trials=3, rounds=1)
    run = run_of("badge", "random")
    seen = Outline(render_report([replace(run, config=config)])).seen
    assert "what differs from the protocol paper is bold" in seen
    assert "trials 3 protocol: 5" in seen and "rounds 1 protocol: 16" in seen
    assert not re.search(r"(hidden|query_size|max_epochs) \S+ protocol", seen)
    for line in deviations(config):
        assert line in seen
    assert "published" not in Outline(render_report([run])).seen
    # A protocol of a later version.
    Outline(render_report([replace(run, config=replace(run.config, protocol="later"))]))


# --- its parts


def test_text_is_escaped_and_markup_is_not():
    made = element("a", "<", element("b", '"&'), href='x"y', hidden=None, open=True, data_n=1.5)
    assert made == '<a href="x&quot;y" open data-n="1.5">&lt;<b>&quot;&amp;</b></a>'
    assert join([["a", None], False, "<"]) == "a&lt;"
    assert "<td>1 &lt; 2</td>" in table("c", ["x"], [["r", "1 < 2"]])


def numbers(path):
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]


@pytest.mark.parametrize("log", [None, "x", "y"])
def test_points_lie_where_the_axes_say(log):
    x, y = [10, 20, 40, 80, 160], [1, 10, 100, 50, 2]
    line = Line("badge", [(a, b, b, b) for a, b in zip(x, y, strict=True)], [""] * 5)
    chart = line_chart(
        [line], strategies=["badge"], title="t", x_title="x", y_title="y", log=log, column=str
    )
    kind = re.search(rf'<g class="{"log" if log else "linear"}">(.*)', chart).group(1)
    path = np.array(numbers(re.search(r'<path d="([^"]+)" class="line"', kind).group(1)))
    place = path.reshape(-1, 2)
    for axis, values, name in ((0, x, "x"), (1, y, "y")):
        scaled = np.log(values) if log == name else np.array(values)
        fit = np.polyfit(scaled, place[:, axis], 1)
        np.testing.assert_allclose(np.polyval(fit, scaled), place[:, axis], atol=0.1)
        # The numbers beside the axis are on the same scale.
        for tick in re.findall(r"<text ([^>]*)>([\d.,]+)</text>", kind):
            if f'class="{name}"' in tick[0]:
                at = float(re.search(rf'{name}="([\d.]+)"', tick[0]).group(1))
                value = float(tick[1].replace(",", ""))
                shown = np.log(value) if log == name else value
                assert np.polyval(fit, shown) == pytest.approx(at, abs=0.3)
    assert (place >= 0).all() and (place <= [WIDTH, HEIGHT]).all()


def test_a_line_is_dashed_alike_whatever_stands_beside_it():
    def dash(*names):
        lines = [Line(name, [(1, 2, 1, 3), (2, 3, 2, 4)], ["", ""]) for name in names]
        chart = line_chart(lines, strategies=names, title="t", x_title="x", y_title="y")
        (found,) = re.findall(r'data-series="0"[^>]*>.*?stroke-dasharray="([^"]*)"', chart)[:1]
        return found, "many" in chart

    assert dash("margin", "badge") == ("7 3", False) == dash("margin")
    assert dash("margin", "badge", "random", "entropy", "albl") == ("7 3", True)


def test_values_without_a_logarithm_are_left_out_of_it():
    line = Line("badge", [(1, 0, 0, 0), (2, 1, 1, 1), (3, 9, 9, 9)], ["", "", ""])
    chart = line_chart([line], strategies=["badge"], title="t", x_title="x", y_title="y", log="y")
    logarithmic = chart.split('<g class="log">')[1]
    assert len(numbers(re.search(r'<path d="([^"]+)" class="line"', logarithmic).group(1))) == 4
    flat = Line("badge", [(5, 2, 2, 2)], [""])
    line_chart([flat], strategies=["badge"], title="t", x_title="x", y_title="y", log="x")


def test_cli(tmp_path, capsys, monkeypatch):
    from fastbadge.lab.store import open_run, record_environment, record_round

    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        recorded = run_of("badge", "random", rounds=3, trials=2)
        digest = load_dataset("digits", split_seed=seed_for(0, 0, 0, "split")).digest
        open_run(tmp_path / name, recorded.config, data_digest=digest)
        environment = record_environment(tmp_path / name, {"python": "3"})
        for row in recorded.rows:
            record_round(tmp_path / name, row, environment)
    assert main(["report", "one"]) == 0 == main(["report", "one"])  # a run's own is made again
    assert "Report: one/report.html" in capsys.readouterr().out
    html = (tmp_path / "one" / "report.html").read_text()
    assert "fastbadge report one" in html and "What each strategy picked first" in html
    assert main(["report", "one", "two"]) == 0
    assert main(["report", "one", "two"]) == 2
    assert "report.html is there already" in capsys.readouterr().err
    assert main(["report", "one", "two", "--force"]) == 0
    assert main(["report", "one", "-o", "one/run.sqlite", "--force"]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2
    assert "holds no run.sqlite" in capsys.readouterr().err


def test_cli_plots_of_several_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "fastbadge.lab.store.read_run", lambda directory: run_of("badge", "random", "margin")
    )
    line = ["plot", "one", "two", "--out", str(tmp_path), "--format", "png,svg,pdf"]
    assert main(line) == 0
    assert "each also as .svg and .pdf" in capsys.readouterr().out
    names = {"penalty_matrix", "error_cdf"}
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{name}.{end}" for name in names for end in ("png", "svg", "pdf")
    }
    assert main(["plot", "one", "two", "--out", str(tmp_path / "gone")]) == 2
    assert "no picture could be written" in capsys.readouterr().err
