from collections import Counter

import pytest

from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.experiment_planning import make_splits
from echoplan.experiment_planning.splits import write_splits
from echoplan.files import read_json, write_json


def cases_of(patients, views=("A2C", "A4C"), split="train"):
    return [
        Case(f"p{n:03d}_{view}", f"p{n:03d}", "x.nii.gz", view=view, split=split, ef_percent=20.0 + n % 60)
        for n in range(patients)
        for view in views
    ]


def patients_in(names):
    return {name.split("_")[0] for name in names}


def test_every_case_is_validated_on_once_and_patients_never_part():
    cases = cases_of(52)
    splits = make_splits(cases)
    assert len(splits) == 5
    assert sorted(name for fold in splits for name in fold["val"]) == sorted(case.case for case in cases)
    for fold in splits:
        assert not patients_in(fold["train"]) & patients_in(fold["val"])
        assert len(fold["train"]) + len(fold["val"]) == len(cases)
    sizes = [len(patients_in(fold["val"])) for fold in splits]
    assert max(sizes) - min(sizes) <= 1


def test_folds_look_alike_in_ef_and_views():
    cases = cases_of(60) + [Case(f"q{n}_A4C", f"q{n}", "x.nii.gz", view="A4C", ef_percent=30.0 + n) for n in range(30)]
    by_name = {case.case: case for case in cases}
    for fold in make_splits(cases):
        members = [by_name[name] for name in fold["val"]]
        mean = sum(case.ef_percent for case in members) / len(members)
        assert abs(mean - sum(case.ef_percent for case in cases) / len(cases)) < 4
        views = Counter(case.patient[0] for case in members if case.view == "A4C")
        assert 11 <= views["p"] <= 13 and 5 <= views["q"] <= 7


def test_the_seed_and_nothing_else_decides():
    cases = cases_of(20)
    assert make_splits(cases) == make_splits(cases[::-1])
    assert make_splits(cases) != make_splits(cases, seed=1)


def test_test_cases_stay_out_and_val_cases_come_in():
    cases = [*cases_of(10), Case("t", "t", "t.nii.gz", split="test"), Case("v", "v", "v.nii.gz", split="val")]
    names = {name for fold in make_splits(cases) for side in fold.values() for name in side}
    assert "t" not in names and "v" in names


def test_few_patients_make_fewer_folds(caplog):
    assert len(make_splits(cases_of(3))) == 3
    assert "3 patients make 3 folds" in caplog.text
    with pytest.raises(EchoPlanError, match="at least 2 patients"):
        make_splits(cases_of(1))


def test_without_ejection_fractions():
    cases = [Case(f"c{n}", f"p{n}", "x.nii.gz") for n in range(11)]
    assert sorted(len(fold["val"]) for fold in make_splits(cases)) == [2, 2, 2, 2, 3]


def test_folds_on_disk_are_kept(tmp_path, caplog):
    path = tmp_path / "splits_final.json"
    written = write_splits(path, cases_of(10))
    assert read_json(path) == written
    assert write_splits(path, cases_of(10), seed=7) == written
    assert write_splits(path, cases_of(11)) == written
    assert "2 cases are in no fold" in caplog.text
    with pytest.raises(EchoPlanError, match="p009"):
        write_splits(path, cases_of(9))


@pytest.mark.parametrize(
    "content, message",
    [
        ([{"train": ["p000_A2C"], "val": ["p000_A4C"]}], "same patients: p000"),
        ([{"train": ["p000_A2C"]}], "train and val"),
        ({"folds": 5}, "train and val"),
    ],
)
def test_wrong_folds_of_the_users_are_refused(tmp_path, content, message):
    path = tmp_path / "splits_final.json"
    write_json(path, content)
    with pytest.raises(EchoPlanError, match=message):
        write_splits(path, cases_of(4))
