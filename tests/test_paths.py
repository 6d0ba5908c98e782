"""The three folders, and datasets found in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from echoplan.errors import EchoPlanError
from echoplan.paths import Folders, dataset_name


@pytest.fixture
def folders(tmp_path):
    """Folders with the raw datasets 1 CAMUS, 7 EchoNet-Dynamic, 12 CAMUS_small, 1000 Big, and things that are none."""
    raw = tmp_path / "raw"
    for name in ("Dataset001_CAMUS", "Dataset007_EchoNet-Dynamic", "Dataset012_CAMUS_small", "Dataset1000_Big", "junk"):
        (raw / name).mkdir(parents=True)
    (raw / "Dataset003_File").write_text("a file is no dataset")
    return Folders.from_environment({"ECHOPLAN_ROOT": str(tmp_path)})


def test_nothing_set_means_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    root = Path("/home/somebody/echoplan")
    assert Folders.from_environment({}) == Folders(root / "raw", root / "preprocessed", root / "results")


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Folders.from_environment({"ECHOPLAN_ROOT": "", "echoplan_raw": ""}) == Folders.from_environment({})


def test_the_root_holds_all_three(tmp_path):
    made = Folders.from_environment({"ECHOPLAN_ROOT": str(tmp_path)})
    assert made == Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


def test_a_variable_of_its_own_wins_over_the_root(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    made = Folders.from_environment(
        {"ECHOPLAN_ROOT": "/r", "echoplan_preprocessed": "/fast", "echoplan_results": "~/x"}
    )
    assert made == Folders(Path("/r/raw"), Path("/fast"), Path("/home/somebody/x"))


def test_the_process_environment_is_the_default_at_call_time(monkeypatch, tmp_path):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path / "late"))
    assert Folders.from_environment().raw == tmp_path / "late" / "raw"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("CAMUS", "Dataset001_CAMUS"), ("1", "Dataset001_CAMUS"), ("001", "Dataset001_CAMUS"),
        ("Dataset001_CAMUS", "Dataset001_CAMUS"), ("CAMUS_small", "Dataset012_CAMUS_small"),
        ("7", "Dataset007_EchoNet-Dynamic"), ("1000", "Dataset1000_Big"),
    ],
)  # fmt: skip
def test_a_dataset_is_found_by_name_id_and_folder(folders, name, folder):
    assert folders.find_raw(name) == folders.raw / folder


@pytest.mark.parametrize("name", ["junk", "File", "3", "2", "", "CAMU", "²", "../raw", "Dataset003_File"])
def test_what_is_not_there_is_not_found(folders, name):
    with pytest.raises(EchoPlanError, match="there is no dataset") as caught:
        folders.find_raw(name)
    assert caught.value.file == str(folders.raw)
    assert "convert the dataset" in str(caught.value)


def test_near_names_are_offered(folders):
    with pytest.raises(EchoPlanError) as caught:
        folders.find_raw("EchoNetDynamic")
    assert caught.value.problem.endswith("there are EchoNet-Dynamic")


def test_a_misspelt_dataset_is_told_its_name_and_no_step_to_make_it(folders):
    for find in (folders.find_raw, folders.find_preprocessed, folders.find_results):
        with pytest.raises(EchoPlanError, match=r"do you mean CAMUS( or .*)?\? If not, convert the dataset first"):
            find("camsu")
    (folders.preprocessed / "Dataset001_CAMUS").mkdir(parents=True)
    with pytest.raises(EchoPlanError, match="train first: echoplan_train CAMUS 0"):
        folders.find_results("CAMUS")
    with pytest.raises(EchoPlanError, match="do you mean CAMUS"):
        folders.find_results("camus")


def test_all_names_are_offered_where_none_is_near(folders):
    with pytest.raises(EchoPlanError, match="there are CAMUS, EchoNet-Dynamic, CAMUS_small, Big"):
        folders.find_raw("zzz")


def test_each_folder_says_which_step_is_missing(folders):
    with pytest.raises(EchoPlanError, match="echoplan_plan_and_preprocess -d CAMUS"):
        folders.find_preprocessed("CAMUS")
    with pytest.raises(EchoPlanError, match="echoplan_train CAMUS"):
        folders.find_results("CAMUS")


def test_preprocessed_and_results_are_looked_up_in_their_own_folders(folders):
    for root in (folders.preprocessed, folders.results):
        (root / "Dataset001_CAMUS").mkdir(parents=True)
    assert folders.find_preprocessed("1") == folders.preprocessed / "Dataset001_CAMUS"
    assert folders.find_results("1") == folders.results / "Dataset001_CAMUS"


def test_one_id_for_two_datasets_is_not_guessed(folders):
    (folders.raw / "Dataset001_Other").mkdir()
    with pytest.raises(EchoPlanError, match="several datasets"):
        folders.find_raw("1")
    assert folders.find_raw("Other").name == "Dataset001_Other"


def test_a_new_dataset_gets_the_next_id(folders, tmp_path):
    assert folders.new_dataset_folder("New") == folders.raw / "Dataset1001_New"
    assert folders.new_dataset_folder("New", dataset_id=3) == folders.raw / "Dataset003_New"
    assert not (folders.raw / "Dataset1001_New").exists()
    empty = Folders.from_environment({"ECHOPLAN_ROOT": str(tmp_path / "empty")})
    assert empty.new_dataset_folder("New") == empty.raw / "Dataset001_New"


def test_the_same_dataset_again_gets_its_folder(folders):
    assert folders.new_dataset_folder("CAMUS") == folders.raw / "Dataset001_CAMUS"
    assert folders.new_dataset_folder("CAMUS", dataset_id=1) == folders.raw / "Dataset001_CAMUS"


def test_taken_ids_and_names_are_refused(folders):
    with pytest.raises(EchoPlanError, match="id 7 is taken") as caught:
        folders.new_dataset_folder("New", dataset_id=7)
    assert caught.value.file == str(folders.raw / "Dataset007_EchoNet-Dynamic")
    with pytest.raises(EchoPlanError, match="CAMUS exists under another id"):
        folders.new_dataset_folder("CAMUS", dataset_id=2)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-d", "12", "with space", "a\n", "ä", "²", "a\\b"])
def test_odd_names_are_refused(folders, name):
    with pytest.raises(EchoPlanError, match="cannot name a dataset"):
        folders.new_dataset_folder(name)


def test_a_folder_name_is_no_dataset_name(folders):
    with pytest.raises(EchoPlanError, match="give the name alone, and the number with --id"):
        folders.new_dataset_folder("Dataset005_New")


def test_a_negative_id_is_refused(folders):
    with pytest.raises(EchoPlanError, match="-1 cannot be a dataset's id"):
        folders.new_dataset_folder("New", dataset_id=-1)


@pytest.mark.parametrize(
    ("folder", "name"), [("Dataset001_CAMUS", "CAMUS"), ("Dataset012_CAMUS_small", "CAMUS_small"), ("mine", "mine")]
)
def test_the_name_in_a_folder(folder, name):
    assert dataset_name(Path("/raw") / folder) == name
