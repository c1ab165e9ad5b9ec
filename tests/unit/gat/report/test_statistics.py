import math
from statistics import NormalDist

import pytest

from gat.evaluation.records import Record
from gat.report.statistics import (
    Column,
    Key,
    accuracy_valid,
    aggregate,
    blind_steps,
    by_cell,
    clean_column,
    columns,
    compare,
    difference_of_means,
    headline_columns,
    judging_columns,
    main_attack,
    mcnemar,
    mean_iterations,
    mean_over,
    models,
    oracle_agreement,
    parent,
    per_class,
    proportion,
    share,
    summarize,
    survival,
    union,
)


def record(id: int = 0, label: int = 0, clean: int = 0, prediction: int = 0, **more: object) -> Record:
    success = clean == label and prediction != label
    settings = {
        "model": "m",
        "attack": "gat",
        "protocol": "p",
        "source": "generated",
        "success": success,
    } | more
    return Record(id=id, label=label, clean_prediction=clean, prediction=prediction, **settings)


@pytest.mark.parametrize(
    "hits, n, low, high",
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", Table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(hits, n, low, high):
    found = proportion(hits, n)
    assert found.value == hits / n
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_wilson_intervals_reach_exactly_zero_and_one_and_have_their_closed_form_there(n):
    z = NormalDist().inv_cdf(0.975)
    none, all_ = proportion(0, n), proportion(n, n)
    assert (none.low, all_.high) == (0.0, 1.0)
    assert none.high == pytest.approx(z**2 / (n + z**2))
    assert all_.low == pytest.approx(n / (n + z**2))
    if n % 2 == 0:
        assert proportion(n // 2, n).width == pytest.approx(z / math.sqrt(n + z**2))


@pytest.mark.parametrize("hits, n", [(0, 0), (-1, 3), (4, 3)])
def test_an_impossible_proportion_is_refused(hits, n):
    with pytest.raises(ValueError, match=f"got {hits} of {n}"):
        proportion(hits, n)


def test_the_share_of_nothing_is_none():
    assert share([]) is None
    assert share([True, False, True]) == proportion(2, 3)


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_mcnemar_is_the_two_sided_binomial_test(n):
    for lost in range(n + 1):
        tail = sum(math.comb(n, k) for k in range(min(lost, n - lost) + 1)) / 2**n
        assert mcnemar(lost, n - lost) == pytest.approx(min(1, 2 * tail))
        assert mcnemar(lost, n - lost) == mcnemar(n - lost, lost)


def test_mcnemar_of_models_that_never_differ_is_one():
    assert mcnemar(0, 0) == 1.0


def test_mcnemar_survives_ten_thousand_examples():
    assert 0 < mcnemar(4700, 5300) < 1e-8
    assert mcnemar(5000, 5000) == 1.0


def test_an_attack_does_not_turn_a_wrong_example_right():
    lucky = record(label=0, clean=1, prediction=0)
    assert summarize(Key("m", Column("gat", "p", "generated")), [lucky]).accuracy.value == 0.0


def test_mean_iterations_counts_successes_only():
    assert (
        mean_iterations(
            [record(prediction=1, iterations=2), record(prediction=1, iterations=4), record(iterations=10)]
        )
        == 3
    )
    assert mean_iterations([record(iterations=10)]) is None


def test_survival_falls_at_the_step_of_each_success():
    records = [
        record(0, prediction=1, iterations=1),
        record(1, prediction=1, iterations=3),
        record(2, prediction=0, iterations=3),
        record(3, clean=1, prediction=1, iterations=0),
    ]
    assert [point.value for point in survival(records, 4)] == [0.75, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("fooled", [0.0, 0.3, 1.0])
def test_survival_never_rises_and_joins_the_accuracies_before_and_after(fooled, draw_records):
    records = draw_records("m", "gat", "p", "generated", fooled)
    summary = summarize(Key("m", Column("gat", "p", "generated")), records)
    curve = [point.value for point in survival(records, 10)]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] == summary.accuracy_before.value
    assert curve[-1] == summary.accuracy.value


def test_survival_of_a_targeted_attack_ends_only_at_its_target():
    missed = record(prediction=2, target=1, success=False, iterations=5)
    hit = record(prediction=1, target=1, success=True, iterations=2)
    assert [point.value for point in survival([missed, hit], 5)] == [1, 1, 0.5, 0.5, 0.5, 0.5]


def test_oracle_agreement_counts_successes_that_the_oracle_read_right_before():
    records = [
        record(prediction=1, oracle_clean=0, oracle=0),
        record(prediction=1, oracle_clean=0, oracle=0),
        record(prediction=1, oracle_clean=0, oracle=2),
        record(prediction=1, oracle_clean=2, oracle=0),  # not read right before
        record(prediction=0, oracle_clean=0, oracle=2),  # not fooled
        record(prediction=1),  # not asked
    ]
    assert oracle_agreement(records) == proportion(2, 3)
    assert oracle_agreement(records[-1:]) is None


def test_models_are_compared_on_shared_examples_only():
    first = [record(i, prediction=p) for i, p in enumerate([0, 0, 0, 1, 1])]
    second = [record(i, prediction=p) for i, p in ((1, 1), (2, 1), (3, 0), (4, 1), (9, 0))]
    found = compare(first, second)
    assert found is not None
    assert (found.n, found.both, found.only_first, found.only_second, found.neither) == (4, 0, 2, 1, 1)
    assert found.difference == -0.25
    assert found.p_value == 1.0
    assert compare(first, [record(77)]) is None


def test_cells_keep_protocol_and_source_apart():
    records = [
        record(protocol="a"),
        record(protocol="b"),
        record(protocol="a", source="real"),
        record(protocol="a"),
    ]
    assert [len(rows) for rows in by_cell(records).values()] == [2, 1, 1]


def test_per_class_is_in_the_order_of_labels():
    assert list(per_class([record(label=2), record(label=0), record(label=2)])) == [0, 2]


def test_columns_put_clean_first_and_variants_behind_their_family():
    attacks = ["gat-style-fine", "pgd-linf-8/255", "gat", "none", "gat-style"]
    found = columns([Key("m", Column(attack, "p", "real")) for attack in attacks])
    assert [column.attack for column in found] == [
        "none",
        "pgd-linf-8/255",
        "gat-style-fine",
        "gat",
        "gat-style",
    ]
    assert [column.attack for column in headline_columns(found)] == ["none", "pgd-linf-8/255", "gat"]
    main = main_attack(found)
    assert main is not None
    assert main.attack == "gat"


def test_parent_is_the_longest_wider_attack():
    attacks = ["gat", "gat-style", "gat-style-coarse", "gatling"]
    assert parent("gat-style-coarse", attacks) == "gat-style"
    assert parent("gatling", attacks) is None


def test_the_main_attack_is_any_attack_where_there_is_no_gat():
    assert main_attack([Column("none", "p", "real")]) is None
    found = main_attack(
        [Column("none", "p", "real"), Column("pgd", "p", "real"), Column("gat-noise", "p", "real")]
    )
    assert found is not None
    assert found.attack == "gat-noise"


def test_the_clean_column_is_of_real_images_where_there_are_any():
    generated, real = Column("none", "p", "generated"), Column("none", "p", "real")
    assert clean_column([generated, real]) == real
    assert clean_column([generated]) == generated
    assert clean_column([Column("gat", "p", "real")]) is None


def test_the_original_model_comes_first():
    column = Column("gat", "p", "real")
    assert models([Key("gat", column), Key("original", column), Key("x", column)]) == ["original", "gat", "x"]


def test_controls_and_other_budgets_judge_nobody():
    attacks = ["none", "pgd", "pgd-random", "pgd@0.5", "fog-random", "gat", "gat-style"]
    found = columns([Key("m", Column(attack, "p", "real")) for attack in attacks])
    assert [column.attack for column in headline_columns(found)] == ["none", "pgd", "gat"]
    assert [column.attack for column in judging_columns(found)] == ["pgd", "gat"]
    suite = ("gat", "gat-style")
    assert [column.attack for column in headline_columns(found, suite)] == ["none", "pgd", "gat", "gat-style"]
    assert [column.attack for column in judging_columns(found, suite)] == ["gat", "gat-style"]


def test_only_pictures_that_keep_their_label_count_against_validity():
    fooled = {"prediction": 1, "oracle_clean": 0}
    records = [
        record(0, oracle=0, oracle_clean=0),  # held
        record(1, oracle=0, **fooled),  # fooled by a valid picture
        record(2, oracle=1, **fooled),  # fooled by a picture of something else
        record(3, prediction=1, oracle=0, oracle_clean=2),  # nobody knows what the oracle reads
        record(4, clean=1, prediction=1, oracle=0, oracle_clean=0),  # wrong before
    ]
    assert accuracy_valid(records) == proportion(3, 5)
    assert accuracy_valid([record(), record(1, prediction=1)]) is None
    found = summarize(Key("m", Column("gat", "p", "generated")), records)
    assert found.accuracy.value == 0.2
    assert found.accuracy_valid is not None
    assert found.accuracy_valid.value == 0.6


def test_blind_steps_are_counted_over_gradients():
    records = [record(backwards=8, zero_gradients=2), record(backwards=2), record()]
    assert blind_steps(records) == 0.2
    assert blind_steps([record()]) is None


def cell(verdicts: list[bool], attack: str = "a", source: str = "real", first: int = 0) -> list[Record]:
    return [
        record(first + i, prediction=0 if right else 1, attack=attack, source=source)
        for i, right in enumerate(verdicts)
    ]


def test_the_mean_of_one_attack_has_the_standard_error_of_a_share():
    found = mean_over([cell([True] * 120 + [False] * 280)])
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == (
        pytest.approx(0.3 - half, abs=0.008),
        pytest.approx(0.3 + half, abs=0.008),
    )
    assert found.n == 400


def test_attacks_on_the_same_examples_are_resampled_together():
    right = [True] * 100 + [False] * 100
    same = mean_over([cell(right, "a"), cell(right, "b")])
    opposite = mean_over([cell(right, "a"), cell(right[::-1], "b")])
    apart = mean_over([cell(right, "a"), cell(right, "b", source="generated")])
    assert same.value == opposite.value == apart.value == 0.5
    assert opposite.low == pytest.approx(0.5) == opposite.high  # every example is right under exactly one
    width = same.high - same.low
    assert apart.high - apart.low == pytest.approx(width / math.sqrt(2), rel=0.1)
    assert same.n == 200
    assert apart.n == 400


def test_seeds_of_training_on_one_image_do_not_make_two_images():
    right = [True, False] * 50
    once, pooled = mean_over([cell(right)]), mean_over([cell(right) + cell(right)])
    assert (pooled.low, pooled.high, pooled.n) == (once.low, once.high, once.n)
    assert union([cell(right) + cell(right)]) == proportion(100, 200)


@pytest.mark.parametrize("right", [True, False])
def test_where_all_examples_agree_their_number_still_counts(right):
    found = mean_over([cell([right] * 20, "a"), cell([right] * 20, "b")])
    wilson = proportion(20 * right, 20)
    assert (found.value, found.low, found.high) == (wilson.value, wilson.low, wilson.high)


def test_attacks_of_different_size_weigh_the_same():
    assert mean_over([cell([True] * 10), cell([False] * 90, "b")]).value == pytest.approx(0.5)


def test_a_difference_on_the_same_examples_is_narrower_than_two_means():
    first = [True] * 100 + [False] * 100
    second = [True] * 110 + [False] * 90
    found = difference_of_means([cell(first)], [cell(second)])
    assert found.value == pytest.approx(0.05)
    assert 0 < found.low < 0.05 < found.high < 0.1
    turned = difference_of_means([cell(second)], [cell(first)])
    assert turned.value == pytest.approx(-0.05)
    assert difference_of_means([cell(first)], [cell(first)]).high == 0.0


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one attack"):
        mean_over([])
    with pytest.raises(ValueError, match="records of each"):
        mean_over([cell([True]), []])


def test_the_union_is_over_shared_examples_and_all_attacks():
    first = cell([True, True, False, True, True])
    second = cell([False, True, True, True], "b", first=1)  # examples 1 to 4
    assert union([first, second]) == proportion(2, 4)
    assert union([]) is None
    assert union([first, cell([True], "b", first=99)]) is None


def test_aggregates_leave_out_what_a_model_was_trained_on_and_name_the_rest():
    a, b, c = (Column(name, "p", "real") for name in "abc")
    g = Column("gat", "p", "generated")
    cells = {
        Key(model, column): cell([i < n for i in range(10)], column.attack, column.source)
        for model in ("original", "robust")
        for column, n in ((a, 8), (b, 4), (c, 6), (g, 2))
    }
    found = {(x.model, x.name): x for x in aggregate(cells, {"robust": [b]}, [a, b, c, g])}
    assert found["original", "mean_unseen"].columns == (a, b, c, g)
    assert found["original", "mean_unseen"].share.value == pytest.approx(0.5)
    assert found["robust", "mean_unseen"].columns == (a, c, g)
    assert found["robust", "mean_unseen"].share.value == pytest.approx(1.6 / 3)
    assert found["robust", "union"].columns == (a, b, c)  # of all, on the same images
    assert found["robust", "union"].share == proportion(4, 10)
    assert found["robust", "worst"].columns == (g,)
    assert found["robust", "worst"].share == proportion(2, 10)
    assert len(found) == 6
