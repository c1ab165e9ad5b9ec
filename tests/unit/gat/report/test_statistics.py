import math
from statistics import NormalDist

import pytest

from gat.evaluation.records import Record
from gat.report.statistics import (
    Column,
    Key,
    by_cell,
    clean_column,
    columns,
    compare,
    headline_columns,
    main_attack,
    mcnemar,
    mean_iterations,
    models,
    oracle_agreement,
    parent,
    per_class,
    proportion,
    share,
    summarize,
    survival,
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
