"""Joint plans of the made-up fingerprints of a CAMUS-like and an EchoNet-like dataset."""

from pathlib import Path

import pytest

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.experiment_planning import plan_experiment
from echoplan.experiment_planning.commands import describe_plan, summarise_plan
from echoplan.experiment_planning.fingerprint import balanced, current_fingerprint, joint_fingerprint, summarise
from echoplan.experiment_planning.splits import joint_splits, write_fixed_splits
from echoplan.files import plain, write_json
from echoplan.multi_dataset import MultiDataset, SourceDataset
from echoplan.plans import Plan

from .conftest import load

BOTH = ("camus", "echonet_dynamic")


def a_joint(*names):
    labels = {"background": 0, "LV": 1}
    raws = {name: EchoDataset(Path(), DatasetDescription(name), ()) for name in names}
    sources = tuple(SourceDataset(name, raw, labels, alone=False) for name, raw in raws.items())
    return MultiDataset("+".join(names), DatasetDescription("+".join(names), labels), sources)


@pytest.fixture
def joint_plan(trainers, fake_memory):
    """Plans the two together, the clips of one of them as often as asked."""

    def make(times=1, **options):
        fingerprints = {name: load(name)[0] for name in BOTH}
        cases = fingerprints["echonet_dynamic"]["cases"]
        many = {f"{name}_{number}": about for name, about in cases.items() for number in range(times)}
        fingerprints["echonet_dynamic"] |= {"cases": many, "summary": summarise(many)}
        for own in fingerprints.values():
            own["failed_cases"] = {}
        joint = a_joint(*BOTH)
        options = {"trainers": trainers, "gpu_memory_gb": 8.0, "measure": fake_memory(), "check": None} | options
        return plan_experiment(joint_fingerprint(joint, fingerprints), joint.description, **options)

    return make


def test_each_dataset_counts_alike_however_many_clips_it_has(joint_plan):
    few, many = joint_plan(), joint_plan(times=20)
    for name in few.trainers:
        one, other = few.resolve(name), many.resolve(name)
        assert (one.size, one.frames, one.batch_size) == (other.size, other.frames, other.batch_size)
    evidence = few.configurations["clip"].decisions["size"].evidence
    medians = evidence["median_long_side_px_by_dataset"]
    assert set(medians) == set(BOTH) and evidence["median_long_side_px"] == pytest.approx(sum(medians.values()) / 2)


def test_geometry_is_each_datasets_own(joint_plan, plan_of):
    joint = joint_plan().resolve("FakeClipTrainer")
    for name in BOTH:
        own, alone = joint.of(name), plan_of(name).resolve("FakeClipTrainer")
        for decision in ("crop", "mirror_axes", "rotation_degrees", "sampling"):
            assert own.decisions[decision] == alone.decisions[decision], decision
        if own.frames == alone.frames:
            assert own.frame_stride == alone.frame_stride
        assert own.size == joint.size
    spacings = joint.decisions["size"].evidence["target_spacing_mm"]
    assert set(spacings) == set(BOTH) and spacings["camus"] not in (None, spacings["echonet_dynamic"])
    with pytest.raises(EchoPlanError, match="for each of camus, echonet_dynamic apart"):
        assert joint.crop


def test_a_joint_plan_survives_its_file_and_can_be_read(joint_plan, tmp_path):
    plan = joint_plan()
    plan.write(tmp_path / "plan.json")
    again = Plan.read(tmp_path / "plan.json")
    resolved = again.resolve("FakeClipTrainer")
    assert plain(again.to_dict()) == plain(plan.to_dict())
    assert type(resolved).from_dict(resolved.to_dict()) == resolved
    assert again.with_trainers_of(plan).trainers.keys() == plan.trainers.keys()
    assert "crop no, zscore_sector" in summarise_plan(plan) and "FakeClipTrainer" in summarise_plan(plan)
    text = describe_plan(plan)
    assert "  of camus:\n    crop: " in text and "the mean of their medians" in text


def test_a_dataset_without_labels_cannot_join(joint_plan):
    fingerprint, description = load("camus")
    unlabelled = {name: {**about, "labelled_frames": 0} for name, about in fingerprint["cases"].items()}
    summaries = {"camus": fingerprint["summary"], "mute": summarise(unlabelled)}
    with pytest.raises(EchoPlanError, match="mute has no labelled training case"):
        plan_experiment({"dataset": "j", "summary": balanced(summaries)}, description, trainers={})


def test_balanced_numbers():
    low, high = (summarise({"a": about}) for about in (_about(100, None), _about(300, 20.0)))
    found = balanced({"low": low, "high": high})
    side = found["whole"]["height_px"]
    assert (side["n"], side["median"], side["min"], side["max"], side["std"]) == (2, 200, 100, 300, 100)
    assert side["by_dataset"] == {"low": 100, "high": 300}
    assert found["ef_percent"]["median"] == 20 and found["known_share"]["ef"] == 0.5  # of the one that knows it
    assert found["counts"]["cases"] == 2 and found["views"] == {"A4C": 2}


def _about(height, ef):
    names = ("frame_rate_hz", "ed_es_distance_ms", "labelled_share", "target_area_share", "target_area_mm2",
             "target_outside_sector_share", "intensity_mean", "intensity_std", "intensity_p0_5", "intensity_median",
             "intensity_p99_5", "ed_es_distance_frames", "frame_time_ms", "spacing_mm")  # fmt: skip
    return dict.fromkeys(names) | {
        "patient": "p", "view": "A4C", "labelled_pattern": "ed_es", "dtype": "uint8", "labelled_frames": 2,
        "frames": 9, "height_px": height, "width_px": height, "sector_box": [0, height, 0, height],
        "sector_saved_share": 0.0, "ef_percent": ef,
    }  # fmt: skip


def test_folds_are_united_and_kept(tmp_path):
    two = [{"train": ["p1"], "val": ["p2"]}, {"train": ["p2"], "val": ["p1"]}]
    three = [
        {"train": ["a", "b"], "val": ["c"]},
        {"train": ["a", "c"], "val": ["b"]},
        {"train": ["b", "c"], "val": ["a"]},
    ]
    united = joint_splits(a_joint("A", "B"), {"A": two, "B": three})
    assert united[0] == {"train": ["A__p1", "B__a", "B__b"], "val": ["A__p2", "B__c"]}
    assert united[2] == {"train": ["A__p1", "A__p2", "B__b", "B__c"], "val": ["B__a"]}
    path = tmp_path / "splits_final.json"
    write_fixed_splits(path, united)
    write_fixed_splits(path, united)
    with pytest.raises(EchoPlanError, match="no longer give"):
        write_fixed_splits(path, united[:2])


def test_a_fingerprint_of_other_cases_is_measured_again(tmp_path):
    dataset = EchoDataset(tmp_path, DatasetDescription("A"), (Case("p1", "p1", "p1.nii"), Case("p2", "p2", "p2.nii")))
    file = tmp_path / "dataset_fingerprint.json"
    assert current_fingerprint(file, dataset) is None
    write_json(file, {"cases": {"p1": {}}, "failed_cases": {"p2": "broken"}})
    assert current_fingerprint(file, dataset) is not None
    write_json(file, {"cases": {"p1": {}}, "failed_cases": {}})
    assert current_fingerprint(file, dataset) is None
