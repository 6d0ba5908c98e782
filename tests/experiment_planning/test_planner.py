"""Plans of six made-up fingerprints. After a wanted change run with ECHOPLAN_REGENERATE=1, read the diff."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from echoplan.errors import EchoPlanError
from echoplan.experiment_planning import plan_experiment, rules
from echoplan.experiment_planning.commands import describe_plan, summarise_plan
from echoplan.experiment_planning.fingerprint import summarise
from echoplan.files import plain, write_json
from echoplan.plans import KINDS, Plan

from .conftest import load

HERE = Path(__file__).parent
NAMES = ("camus", "echonet_dynamic", "dicom_with_text", "very_small", "very_large", "no_spacing")


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_as_it_was(plan_of, name):
    plan = plain(plan_of(name).to_dict())
    plan["hardware"]["device"]["value"] = "none"  # the only thing that depends on the machine
    path = HERE / "plans" / f"{name}.json"
    if os.environ.get("ECHOPLAN_REGENERATE"):
        write_json(path, plan)
    assert plan == json.loads(path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_every_decision_says_why(plan_of, name, tmp_path):
    plan = plan_of(name)
    groups = [plan.hardware, *(item.decisions for item in (*plan.configurations.values(), *plan.trainers.values()))]
    for group in groups:
        for key, decision in group.items():
            assert len(decision.rule) > 8, key
            assert decision.kind in KINDS
            assert decision.evidence or decision.kind == "fixed" or group is plan.hardware, key
    plan.write(tmp_path / "EchoPlans.json")
    assert plain(asdict(Plan.read(tmp_path / "EchoPlans.json"))) == plain(asdict(plan))


@pytest.mark.parametrize(
    "name, frame, clip, big, crop",
    [
        ("camus", [224, 256], [256, 256], [320, 320], False),  # anisotropic: 973 x 591 pixels are 150 x 182 mm
        ("echonet_dynamic", [128, 128], [128, 128], [128, 128], False),
        ("dicom_with_text", [224, 256], [256, 256], [320, 320], True),
        ("very_small", [96, 96], [96, 96], [96, 96], False),
        ("very_large", [224, 256], [256, 256], [320, 320], True),
        ("no_spacing", [192, 256], [256, 256], [320, 320], False),  # cropping would cut labels off
    ],
)
def test_sizes_and_crop(plan_of, name, frame, clip, big, crop):
    plan = plan_of(name, gpu_memory_gb=80.0)
    assert plan.configurations["frame"].decisions["size"].value == frame
    assert plan.configurations["clip"].decisions["size"].value == clip
    assert plan.trainers["FakeClipTrainer"].decisions["size"].value == big
    assert plan.resolve("FakeClipTrainer").crop is crop
    assert list(plan.resolve("FakeFrameTrainer").size) == frame


def test_what_the_data_say_about_training(plan_of):
    camus = plan_of("camus")
    assert camus.resolve("FakeClipTrainer").sampling == "uniform_ed_es"
    assert camus.resolve("FakeFrameTrainer").sampling == "labelled_frames"
    assert plan_of("dicom_with_text").resolve("FakeClipTrainer").sampling == "windows"
    assert camus.resolve("FakeFrameTrainer").mirror_axes == ("horizontal",)
    assert plan_of("very_small").resolve("FakeFrameTrainer").mirror_axes == ()
    assert camus.resolve("FakeFrameTrainer").frames == 1


def test_target_spacing_is_measured_on_the_networks_grid(plan_of):
    def spacing(plan, configuration="frame"):
        return plan.configurations[configuration].decisions["size"].evidence["target_spacing_mm"]

    # The median clip is 973 x .154 = 149.8 mm high and 591 x .308 = 182.0 mm wide, on 224 x 256: the width binds.
    assert spacing(plan_of("camus")) == pytest.approx([182.028 / 256] * 2, abs=2e-4)
    assert spacing(plan_of("no_spacing")) is None
    stretched = spacing(plan_of("camus", protocol="stretch"), "clip")
    assert stretched == pytest.approx([149.842 / 256, 182.028 / 256], abs=2e-4)


def test_the_papers_protocol_stretches_to_a_square(plan_of):
    resolved = plan_of("camus", protocol="stretch").resolve("FakeFrameTrainer")
    assert resolved.size == (256, 256) and resolved.protocol == "stretch"
    assert resolved.store == "EchoPlans_256x256_stretch"
    with pytest.raises(EchoPlanError, match="aspect or paper"):
        plan_of("camus", protocol="squeeze")


def test_a_size_asked_for_is_fixed_and_fitted(plan_of):
    plan = plan_of("camus", size=(100, 200))
    assert plan.configurations["frame"].decisions["size"].value == [128, 224]
    assert plan.trainers["FakeClipTrainer"].decisions["size"].value == [224, 224]
    assert plan.trainers["FakeSmallTrainer"].decisions["size"].value == [208, 208]
    assert plan.trainers["FakeClipTrainer"].decisions["size"].kind == "fixed"
    with pytest.raises(EchoPlanError, match="--size"):
        plan_of("camus", size=(0, 64))


def test_trainers_that_cannot_take_the_labels_are_left_out(plan_of):
    assert "FakeSmallTrainer" in plan_of("camus").trainers
    assert "FakeSmallTrainer" not in plan_of("very_large").trainers


@pytest.mark.parametrize(
    "target, batch, frames, size",
    [
        (80.0, 8, 10, 320),  # the paper's
        (5.0, 3, 10, 320),  # 1.1 GB + 1.024 GB a clip, 4.5 GB to use
        (2.0, 1, 6, 320),  # 0.7 GB left: 0.614 GB with six frames
        (1.4, 1, 2, 256),  # 0.16 GB left: two frames of 288 x 288 are 0.166, of 256 x 256 0.131
    ],
)
def test_what_the_gpu_decides(plan_of, target, batch, frames, size):
    resolved = plan_of("camus", gpu_memory_gb=target).resolve("FakeClipTrainer")
    assert (resolved.batch_size, resolved.frames, resolved.size) == (batch, frames, (size, size))
    evidence = resolved.decisions["batch_size"].evidence
    assert evidence["fits"] and evidence["gpu_memory_target_gb"] == target
    assert evidence["memory_gb_by_batch_size"][str(batch)] <= 0.9 * target


def test_the_learning_rate_is_the_papers_and_says_what_that_means(plan_of):
    whole = plan_of("camus", gpu_memory_gb=80.0).trainers["FakeClipTrainer"].decisions["learning_rate"]
    assert whole.value == 1e-3 and whole.rule == "the paper's, which belongs to its batch"
    less = plan_of("camus", gpu_memory_gb=5.0).trainers["FakeClipTrainer"].decisions["learning_rate"]
    assert less.value == 1e-3 and less.kind == "fixed"
    assert "kept though the batch is 3 instead of 8" in less.rule and "--set learning_rate=X" in less.rule
    assert less.evidence == {
        "paper_batch_size": 8, "batch_size": 3, "by_linear_rule": 0.000375, "by_square_root_rule": 0.000612,
    }  # fmt: skip


def test_a_stride_says_why(plan_of):
    camus = plan_of("camus").trainers
    single, clip = (camus[name].decisions["frame_stride"] for name in ("FakeFrameTrainer", "FakeClipTrainer"))
    assert single.value == 1 and single.rule.startswith("frames go through the network one at a time")
    assert clip.value == 2 and clip.rule.startswith("a window of T frames spans")
    unknown = rules.stride_rule({"ed_es_distance_frames": None}, 10)
    assert unknown.value == 1 and unknown.rule.startswith("no distance from ED to ES is known")


def test_a_gpu_that_is_too_small_is_said_to_be(plan_of, caplog):
    resolved = plan_of("camus", gpu_memory_gb=1.0).resolve("FakeClipTrainer")
    assert resolved.batch_size == 1 and not resolved.decisions["batch_size"].evidence["fits"]
    assert "does not fit a GPU of 1 GB" in caplog.text
    with pytest.raises(EchoPlanError, match="gpu_memory_target"):
        plan_of("camus", gpu_memory_gb=-1)


def test_a_size_asked_for_is_not_shrunk(plan_of):
    resolved = plan_of("camus", gpu_memory_gb=1.4, size=(320, 320)).resolve("FakeClipTrainer")
    assert resolved.size == (320, 320) and not resolved.decisions["batch_size"].evidence["fits"]


def test_memory_that_cannot_be_simulated_does_not_stop_the_plan(plan_of, caplog):
    def broken(trainer, **_):
        raise EchoPlanError("it looks at values")

    decision = plan_of("camus", measure=broken).trainers["FakeClipTrainer"].decisions["batch_size"]
    assert decision.value == 8 and "looks at values" in decision.evidence["reason"]
    assert "looks at values" in caplog.text


def test_a_dataset_without_labels_is_refused(trainers):
    fingerprint, description = load("no_spacing")
    cases = {"x3": fingerprint["cases"]["x3"]}
    with pytest.raises(EchoPlanError, match="no labelled training case"):
        plan_experiment({"dataset": "D", "cases": cases, "summary": summarise(cases)}, description, trainers=trainers)


def test_the_real_networks_are_simulated_by_default(trainers):
    fingerprint, description = load("camus")
    plan = plan_experiment(fingerprint, description, trainers=trainers, gpu_memory_gb=8)
    assert plan.resolve("FakeFrameTrainer").batch_size == 32


def test_a_plan_at_a_glance_has_nine_lines_and_all_trainers_that_fit(plan_of):
    plan = plan_of("camus")
    lines = summarise_plan(plan).split("\n")
    assert len(lines) == 3 + len(plan.trainers) and "for 8 GB" in lines[0] and "rotations to 20 degrees" in lines[1]
    assert lines[4].split() == ["FakeClipTrainer", "320", "x", "320", "10", "2", "5", "0.001"]
    many = replace(
        plan, trainers={f"{number}{name}": own for number in range(3) for name, own in plan.trainers.items()}
    )
    lines = summarise_plan(many).split("\n")
    assert len(lines) == 9 and lines[-1] == "and 4 trainers more"


def test_the_plan_in_words(plan_of):
    text = describe_plan(plan_of("camus"))
    assert "  size: 224 x 256, because: long side: the median long side" in text
    assert "  crop: no, because: crop to the sector's box where" in text
    assert "  mirror_axes: horizontal, because:" in text
    assert "trainer FakeClipTrainer (else as configuration clip)" in text


def test_frames_asked_for_hold_for_clips_and_not_for_single_frames(plan_of):
    plan = plan_of("camus", frames=5)
    assert plan.resolve("FakeClipTrainer").frames == 5 and plan.configurations["clip"].decisions["frames"].value == 5
    assert plan.resolve("FakeFrameTrainer").frames == 1
    assert plan.trainers["FakeClipTrainer"].decisions["frames"].evidence["asked_for"] == 5
    with pytest.raises(EchoPlanError, match=r"shows no motion.*--frames 2"):
        plan_of("camus", frames=1)
