"""The numbers are honest: intervals against scipy, the slice and the forecast by simulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fastbadge.errors import InputError
from fastbadge.label.numbers import LEAST_SLICE, compute_numbers, forecast, wilson
from fastbadge.label.project import Config, ModelState, Snapshot, _ticket
from fastbadge.label.rounds import _first_to_ask, _reserve_in_turn, slice_mask, validation_size

CONFIG = Config(kind="texts", source="/t.csv", features="tfidf")


def snapshot(truth_N, ticket_N, batched_N, config=CONFIG):
    """A project in which every item of a batch is answered with its true class."""
    N = len(truth_N)
    return Snapshot(
        config,
        {1: "a", 2: "b"},
        1,
        np.zeros(N, dtype=bool),
        ticket_N < config.share,
        ticket_N,
        batched_N,
        batched_N.copy(),
        np.where(batched_N, truth_N, 0),
        0,
    )


def model_of(guess_N, reserve, labels=50):
    rows = np.flatnonzero(reserve)
    return ModelState(labels, 0, 0, 0.1, {"item": rows + 1, "class": guess_N[rows]})


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts):
    correct, total = counts
    rate = wilson(correct, total)
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert rate.low == pytest.approx(expected.low, abs=1e-12)
    assert rate.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


@pytest.mark.parametrize("counts", [(1, 0), (-1, 3), (4, 3)])
def test_what_is_no_share_is_refused(counts):
    with pytest.raises(InputError, match="is no share"):
        wilson(*counts)


@given(st.integers(1, 60), st.floats(0, 0.95), st.integers(0, 200))
def test_the_share_is_kept_over_batches(batch, share, batches):
    config = replace(CONFIG, batch=batch, share=share)
    drawn = [validation_size(config, b) for b in range(batches)]
    assert abs(sum(drawn) - share * batch * batches) < 1 + 1e-4
    assert all(0 <= size <= batch for size in drawn)


def test_tickets_are_uniform():
    ticket_N = np.sort([_ticket(7, f"{item:064x}") for item in range(20_000)])
    # Kolmogorov-Smirnov: 1.63 / sqrt(N) is exceeded once in a hundred.
    assert np.abs(ticket_N - np.arange(20_000) / 20_000).max() < 1.63 / np.sqrt(20_000)


def test_imported_labels_come_free_and_in_turn():
    reserve, answered_N = np.array([5, 1, 8, 3]), np.zeros(10, dtype=bool)
    answered_N[[1, 3]] = True
    assert _first_to_ask(reserve, 2, answered_N).tolist() == [5, 1, 8]
    assert _first_to_ask(reserve, 1, answered_N).tolist() == [5]
    assert _first_to_ask(reserve, 9, answered_N).tolist() == [5, 1, 8, 3]
    assert _first_to_ask(reserve, 0, answered_N).tolist() == []


def labelling(draw, N, later):
    """A loop whose strategy takes the easy items, and that gets new, harder items half-way.

    Yields the snapshot and the model's answers, right for 90 % of the old, 60 % of the new items.
    """
    right_N = draw.random(N) < np.where(np.arange(N) < N - later, 0.9, 0.6)
    truth_N = np.ones(N, dtype=np.int64)
    guess_N = np.where(right_N, 1, 2)
    ticket_N, batched_N = draw.random(N), np.zeros(N, dtype=bool)
    for turn in range(16):
        present = N if turn >= 8 else N - later
        now = snapshot(truth_N[:present], ticket_N[:present], batched_N[:present])
        chosen = _first_to_ask(_reserve_in_turn(now), 4, now.answered_N)
        free = np.flatnonzero(~now.reserved_N & ~now.batched_N & right_N[:present])
        batched_N[chosen] = batched_N[free[:20]] = True
        now = snapshot(truth_N[:present], ticket_N[:present], batched_N[:present])
        yield turn, now, guess_N[:present], right_N[:present].mean()


def test_the_slice_is_unbiased_and_its_interval_covers_whatever_the_strategy_takes():
    draw = np.random.default_rng(0)
    errors = {turn: [] for turn in range(16)}
    inside = []
    for _ in range(300):
        for turn, now, guess_N, accuracy in labelling(draw, 1200, later=400):
            mask_N = slice_mask(now)
            correct, total = int((guess_N[mask_N] == 1).sum()), int(mask_N.sum())
            errors[turn].append(correct / total - accuracy)
            if turn < 8 or turn > 12:  # between, the slice still speaks of the old items
                rate = wilson(correct, total)
                inside.append(rate.low <= accuracy <= rate.high)
    for turn, values in errors.items():
        if turn < 8 or turn > 12:
            # 4 standard errors; what is left over by the strategy would be off by 0.02 and more.
            assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values)), turn
    assert np.mean(inside) > 0.93


def test_a_draw_from_what_is_left_over_would_be_biased():
    """The test above can tell: the tempting way is off by far more than its tolerance."""
    draw = np.random.default_rng(0)
    errors = []
    for _ in range(300):
        right_N = draw.random(1200) < 0.9
        left = np.delete(np.arange(1200), np.flatnonzero(right_N)[:400])
        errors.append(right_N[draw.permutation(left)[:60]].mean() - right_N.mean())
    assert np.mean(errors) < -10 * np.std(errors) / np.sqrt(len(errors))


def test_numbers_of_a_hand_made_project():
    N = 400
    ticket_N = np.linspace(0, 1, N, endpoint=False)
    truth_N = np.where(np.arange(N) % 4 == 0, 2, 1)
    guess_N = np.where(np.arange(N) % 8 == 0, 1, truth_N)  # half of the b's are taken for a's
    batched_N = np.arange(N) < 40
    now = snapshot(truth_N, ticket_N, batched_N)
    numbers = compute_numbers(now, [model_of(guess_N, now.reserved_N)])
    assert numbers.slice_size == 40 and numbers.trained_on == 50
    assert numbers.confusion == {("a", "a"): 30, ("b", "a"): 5, ("b", "b"): 5}
    assert numbers.accuracy == wilson(35, 40) and numbers.curve == [(50, wilson(35, 40))]
    assert numbers.recall == {"a": wilson(30, 30), "b": wilson(5, 10)}
    assert numbers.forecast is None
    assert numbers.words == (
        "Accuracy 87.5 %, between 73.9 and 94.5 % (95 %, 40 validation labels). "
        "Too early to say what further labels bring."
    )
    done = replace(now, answered_N=np.ones(N, dtype=bool))
    assert compute_numbers(done, [model_of(guess_N, now.reserved_N)]).words == (
        numbers.words.removesuffix("Too early to say what further labels bring.")
        + "Nothing is left to label."
    )


def test_no_more_labels_are_promised_than_there_are_items():
    N, rng = 1000, np.random.default_rng(0)
    now = snapshot(np.ones(N, dtype=np.int64), rng.random(N), np.ones(N, dtype=bool))
    models = [
        model_of(np.where(rng.random(N) < 1 / labels**0.5, 2, 1), now.reserved_N, labels=labels)
        for labels in range(50, 500, 50)
    ]
    for left, promised in [(700, 100), (37, 37)]:
        part = replace(now, answered_N=np.arange(N) >= left)
        assert compute_numbers(part, models).forecast.labels == promised
    part = replace(now, answered_N=np.ones(N, dtype=bool))
    assert compute_numbers(part, models).forecast is None
    assert compute_numbers(part, models).words.endswith("Nothing is left to label.")


def test_ten_thousand_classes_take_no_matrix():
    truth_N = np.arange(400) + 9601
    now = snapshot(truth_N, np.linspace(0, 1, 400, endpoint=False), np.arange(400) < 40)
    now = replace(now, classes={id: f"class {id}" for id in range(1, 10_001)})
    numbers = compute_numbers(now, [model_of(truth_N - 1, now.reserved_N)])
    assert len(numbers.confusion) == 40 and numbers.confusion["class 9601", "class 9600"] == 1
    assert numbers.accuracy == wilson(0, 40) and set(numbers.recall.values()) == {None}


def test_too_small_a_slice_gives_words_and_no_number():
    ticket_N = np.linspace(0, 1, 400, endpoint=False)
    now = snapshot(np.ones(400, dtype=np.int64), ticket_N, np.arange(400) < LEAST_SLICE - 1)
    numbers = compute_numbers(now, [model_of(np.ones(400, dtype=np.int64), now.reserved_N)])
    assert numbers.accuracy is None and numbers.curve == [] and numbers.recall["a"] is None
    assert numbers.words.startswith("Too early for an accuracy: 29 of the 30 validation labels")
    assert compute_numbers(now, []).words == (
        "No model yet: it takes labels of two classes, then the next batch."
    )
    two = replace(now, class_N=np.where(np.arange(400) % 2, 1, 2))
    assert compute_numbers(two, []).words == "No model yet: it comes with the next batch."
    few = replace(now, reserved_N=np.arange(400) < LEAST_SLICE - 1)  # there will never be more
    numbers = compute_numbers(few, [model_of(np.ones(400, dtype=np.int64), few.reserved_N)])
    assert numbers.words == (
        "No accuracy: 29 of the items here are for validation, and it takes 30; a new project with "
        "a larger --validation has more."
    )


def test_items_that_came_after_a_model_do_not_count_for_it():
    ticket_N = np.linspace(0, 0.1, 80)
    now = snapshot(np.ones(80, dtype=np.int64), ticket_N, np.ones(80, dtype=bool))
    old = model_of(np.full(80, 2), np.arange(80) < 40)
    new = model_of(np.ones(80, dtype=np.int64), np.arange(80) < 80, labels=90)
    assert compute_numbers(now, [old, new]).curve == [(50, wilson(0, 40)), (90, wilson(80, 80))]


def learning(draw, label_R, slice_size, a=2.0, b=0.6, c=0.05):
    """Models whose true error is c + a n^-b, on one slice: an item falls at a level of its own."""
    level_M = draw.random(slice_size)
    scatter_R = draw.normal(0, 0.004, len(label_R))
    return (level_M[None, :] < (c + a * label_R**-b + scatter_R)[:, None]).sum(axis=1)


def test_the_forecast_covers_what_the_next_hundred_bring():
    draw = np.random.default_rng(0)
    label_R = np.arange(17, 400, 17)
    now = label_R[-1]
    true = 2.0 * (now**-0.6 - (now + 85.0) ** -0.6)
    inside, gains = [], []
    for _ in range(200):
        expected = forecast(label_R, learning(draw, label_R, 70), 70)
        inside.append(expected.low <= true <= expected.high)
        gains.append(expected.gain)
    assert np.mean(inside) > 0.9
    assert np.mean(gains) == pytest.approx(true, abs=0.005)


def test_the_forecast_says_when_a_curve_is_flat():
    draw = np.random.default_rng(0)
    label_R = np.arange(100, 1500, 40)
    expected = forecast(label_R, learning(draw, label_R, 300, a=0.0, c=0.1), 300)
    assert 0 <= expected.low <= expected.gain <= expected.high < 0.01


def test_the_forecast_does_not_know_from_little():
    draw = np.random.default_rng(0)
    few, many = np.arange(20, 100, 20), np.arange(20, 400, 20)
    assert forecast(few, learning(draw, few, 100), 100) is None
    assert forecast(many, learning(draw, many, 29), 29) is None
    assert forecast(np.empty(0, dtype=int), np.empty(0, dtype=int), 50) is None
