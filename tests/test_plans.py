"""The plan's objects, to JSON and back, with inheritance."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from echoplan.errors import EchoPlanError
from echoplan.plans import Configuration, Decision, Plan, ResolvedPlan


def decisions(**values):
    return {name: Decision(value, f"why {name}", {"median": 1.5}) for name, value in values.items()}


@pytest.fixture
def plan():
    """frame <- clip <- PKTrainer, frame <- UTrainer; each level overrules something."""
    frame = decisions(
        size=[256, 192], frames=1, frame_stride=1, batch_size=8, crop=True, protocol="aspect", normalisation="clip",
        mirror_axes=["horizontal"], rotation_degrees=15, sampling="windows",
    )  # fmt: skip
    return Plan(
        dataset="CAMUS",
        plans_name="EchoPlans",
        configurations={
            "frame": Configuration("frame", frame),
            "clip": Configuration("clip", decisions(frames=10, batch_size=2), inherits_from="frame"),
        },
        trainers={
            "UTrainer": Configuration("UTrainer", {}, inherits_from="frame"),
            "PKTrainer": Configuration(
                "PKTrainer", decisions(size=[112, 112], protocol="stretch", epochs=50), inherits_from="clip"
            ),
        },
        hardware={"gpu_memory_gb": Decision(8, "no GPU was found", kind="fixed")},
    )


def test_the_plan_survives_its_file(plan, tmp_path):
    path = tmp_path / "EchoPlans.json"
    plan.write(path)
    assert Plan.read(path) == plan
    stored = json.loads(path.read_text())
    size = stored["configurations"]["frame"]["decisions"]["size"]
    assert size == {"value": [256, 192], "rule": "why size", "evidence": {"median": 1.5}, "kind": "rule"}


def test_typed_properties(plan):
    resolved = plan.resolve("UTrainer")
    assert resolved.size == (256, 192) and isinstance(resolved.size, tuple)
    assert (resolved.frames, resolved.frame_stride, resolved.batch_size) == (1, 1, 8)
    assert resolved.crop is True
    assert resolved.mirror_axes == ("horizontal",)
    assert resolved.rotation_degrees == 15.0
    assert (resolved.protocol, resolved.normalisation, resolved.sampling) == ("aspect", "clip", "windows")
    assert resolved.configuration == "frame"


def test_inheritance_goes_from_trainer_over_configuration_to_its_parent(plan):
    resolved = plan.resolve("PKTrainer")
    assert resolved.size == (112, 112)  # the trainer's own
    assert (resolved.frames, resolved.batch_size) == (10, 2)  # of clip, over frame
    assert resolved.crop is True  # of frame
    assert resolved.value("epochs") == 50
    assert resolved.configuration == "clip"
    assert resolved.decisions["frames"].rule == "why frames"


def test_one_trainers_decisions_do_not_reach_another(plan):
    plan.resolve("PKTrainer")
    assert plan.resolve("UTrainer").size == (256, 192)
    assert "epochs" not in plan.resolve("UTrainer").decisions


def test_the_store_is_named_by_plan_grid_and_protocol(plan):
    assert plan.resolve("UTrainer").store == "EchoPlans_256x192"
    assert plan.resolve("PKTrainer").store == "EchoPlans_112x112_stretch"
    assert replace(plan, plans_name="Mine").resolve("UTrainer").store == "Mine_256x192"


def test_a_trainer_the_plan_does_not_know_builds_on_a_configuration(plan):
    resolved = plan.resolve("MyTrainer", configuration="clip")
    assert (resolved.frames, resolved.size, resolved.configuration) == (10, (256, 192), "clip")


def test_an_unknown_trainer_names_those_there_are(plan):
    with pytest.raises(EchoPlanError, match="no trainer MyTrainer") as caught:
        plan.resolve("MyTrainer")
    assert "UTrainer, PKTrainer" in str(caught.value)
    assert "echoplan_plan_and_preprocess -d CAMUS -tr MyTrainer" in str(caught.value)
    with pytest.raises(EchoPlanError, match="no trainer MyTrainer"):
        plan.resolve("MyTrainer", configuration="volume")


@pytest.mark.parametrize("parents", [("clip", "frame"), ("frame", "frame"), ("clip", None, "nowhere")])
def test_circles_and_unknown_parents_are_errors(plan, parents):
    frame = replace(plan.configurations["frame"], inherits_from=parents[0] if len(parents) == 2 else None)
    clip = replace(plan.configurations["clip"], inherits_from=parents[1] if len(parents) == 2 else parents[2])
    broken = replace(plan, configurations={"frame": frame, "clip": clip})
    with pytest.raises(EchoPlanError, match="inherits"):
        broken.resolve("PKTrainer")


def test_a_decision_that_is_not_there(plan):
    with pytest.raises(EchoPlanError, match="does not decide 'colour' for frame"):
        plan.resolve("UTrainer").value("colour")


def test_the_resolved_plan_survives_its_dictionary(plan):
    resolved = plan.resolve("PKTrainer")
    assert ResolvedPlan.from_dict(json.loads(json.dumps(resolved.to_dict()))) == resolved


@pytest.mark.parametrize("kind", ["rule", "measured", "fixed"])
def test_known_kinds(kind):
    assert Decision(1, "why", kind=kind).kind == kind


def test_an_unknown_kind_is_refused(plan, tmp_path):
    with pytest.raises(ValueError, match="guess"):
        Decision(1, "why", kind="guess")
    path = tmp_path / "EchoPlans.json"
    plan.write(path)
    content = json.loads(path.read_text())
    content["trainers"]["PKTrainer"]["decisions"]["epochs"]["kind"] = "guess"
    path.write_text(json.dumps(content))
    with pytest.raises(EchoPlanError, match=r"not a plan.*guess") as caught:
        Plan.read(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"dataset": "a", "plans_name": "b", "configurations": []}', "3"])
def test_what_is_no_plan_names_the_file(tmp_path, content):
    path = tmp_path / "EchoPlans.json"
    path.write_text(content)
    with pytest.raises(EchoPlanError, match="not a plan") as caught:
        Plan.read(path)
    assert caught.value.file == str(path)


def test_a_missing_plan_says_what_to_run(tmp_path):
    with pytest.raises(EchoPlanError, match="run echoplan_plan_and_preprocess first"):
        Plan.read(tmp_path / "EchoPlans.json")
