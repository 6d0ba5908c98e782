from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from echoplan.dataset import Case
from echoplan.evaluation import PatientRow, ef_class, subgroup_agreement, subgroup_metrics, write_ef_report


def row(patient, ef, reference, method="biplane", failure=""):
    return PatientRow(patient, ef_percent=ef, reference_ef_percent=reference, method=method, failure=failure)


@pytest.fixture
def rows():
    """30 patients of all EF classes, one failed, one without a reference."""
    random = np.random.default_rng(3)
    reference = random.uniform(25, 70, 30)
    measured = reference + random.normal(2, 6, 30)
    made = [
        row(f"p{i}", float(ef), float(truth)) for i, (ef, truth) in enumerate(zip(measured, reference, strict=True))
    ]
    made.append(row("failed", None, 35.0, None, failure="no frame has a cavity"))
    made.append(row("unknown", 55.0, None))
    return made


@pytest.mark.parametrize(
    ("ef", "name"),
    [(-5, "< 40 %"), (39.999, "< 40 %"), (40, "40 to 49 %"), (49.999, "40 to 49 %"), (50, "≥ 50 %"), (99, "≥ 50 %"),
     (None, "")],
)  # fmt: skip
def test_classes_of_ef(ef, name):
    assert ef_class(ef) == name


def test_agreement_of_each_class_equals_scipy(rows):
    found = subgroup_agreement(rows)
    assert [(each["by"], each["group"]) for each in found] == [
        ("EF class", "< 40 %"), ("EF class", "40 to 49 %"), ("EF class", "≥ 50 %"),
    ]  # fmt: skip
    bounds = {"< 40 %": (-100, 40), "40 to 49 %": (40, 50), "≥ 50 %": (50, 200)}
    for each in found:
        low, high = bounds[each["group"]]
        pairs = np.array(
            [(r.ef_percent, r.reference_ef_percent) for r in rows
             if None not in (r.ef_percent, r.reference_ef_percent) and low <= r.reference_ef_percent < high]
        )  # fmt: skip
        difference = pairs[:, 0] - pairs[:, 1]
        assert each["n"] == len(pairs) > 3
        assert each["pearson_r"] == pytest.approx(stats.pearsonr(*pairs.T).statistic)
        assert each["bias"] == pytest.approx(difference.mean())
        assert each["sd_of_differences"] == pytest.approx(stats.tstd(difference))
        assert each["mae"] == pytest.approx(np.abs(difference).mean())
    assert [each["failures"] for each in found] == [1, 0, 0]
    assert sum(each["n"] for each in found) == 30


def test_views_and_image_quality_where_they_differ():
    mixed = [row("a", 50, 52, "biplane"), row("b", 60, 52, "single_plane_a4c"), row("c", 40, 51, "single_plane"),
             row("d", 45, 51, "single_plane_a4c")]  # fmt: skip
    groups = subgroup_agreement(mixed, image_quality={"a": "Good", "b": "Poor", "c": "Poor", "d": ""})
    found = {(each["by"], each["group"]): (each["n"], each["bias"]) for each in groups}
    assert found == {
        ("EF class", "≥ 50 %"): (4, pytest.approx(-2.75)),
        ("view", "A2C and A4C"): (1, -2),
        ("view", "A4C"): (2, pytest.approx(1)),
        ("image quality", "Good"): (1, -2),
        ("image quality", "Poor"): (2, pytest.approx(-1.5)),
    }


def test_no_reference_no_subgroup():
    assert subgroup_agreement([row("a", 50, None)]) == []
    assert subgroup_agreement([]) == []


def test_the_ef_report_has_them(rows, tmp_path):
    write_ef_report(tmp_path, rows)
    stored = json.loads((tmp_path / "ef_report.json").read_text(encoding="utf-8"))
    assert stored["subgroups"] == json.loads(json.dumps(subgroup_agreement(rows)))
    assert list(stored["subgroups"][0]) == [
        "by", "group", "n", "failures", "pearson_r", "bias", "sd_of_differences", "mae",
    ]  # fmt: skip


def test_metrics_of_views_quality_and_classes():
    def judged(dice):
        metrics = {"dice": dice, "iou": 0.5, "hd95": 1.0, "assd": 1.0, "predicted_pixels": 9, "reference_pixels": 9}
        frames = [{"frame": 0, "LV": metrics}]
        return {"distance_unit": "mm", "ed_frame": 0, "es_frame": None, "frames": frames}

    dice = {"a2": 0.9, "a4": 0.8, "b2": 0.7, "b4": 0.5}
    cases = [
        Case("a2", "a", "", view="A2C", quality="Good", ef_percent=30.0), Case("a4", "a", "", view="A4C"),
        Case("b2", "b", "", view="A2C", quality="Poor", ef_percent=60.0), Case("b4", "b", "", view="A4C"),
        Case("elsewhere", "c", "", view="PLAX"),
    ]  # fmt: skip
    found = subgroup_metrics({name: judged(value) for name, value in dice.items()}, cases, ["LV"])
    means = {(each["by"], each["group"]): (each["cases"], each["mean"]["LV"]["all"]["dice"]["mean"]) for each in found}
    assert means == {
        ("view", "A2C"): (2, pytest.approx(0.8)), ("view", "A4C"): (2, pytest.approx(0.65)),
        ("image quality", "Good"): (1, 0.9), ("image quality", "Poor"): (1, 0.7),
        ("EF class", "< 40 %"): (2, pytest.approx(0.85)), ("EF class", "≥ 50 %"): (2, pytest.approx(0.6)),
    }  # fmt: skip
    assert found[0]["mean"]["LV"]["end_diastole"]["dice"]["sd"] == pytest.approx(np.std([0.9, 0.7], ddof=1))
