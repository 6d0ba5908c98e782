"""echoplan_compare_prompts for a network that takes a box a frame; for those that follow a clip see test_e3sam2.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.imageio import read_mask
from echoplan.networks import build_network
from echoplan.networks.sliding_window import segment_clip
from echoplan.plans import Configuration, Plan
from echoplan.scripts import compare_prompts
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import find_method
from echoplan.training.model_folder import ModelFolder
from echoplan.training.prompts import CasePrompts, box_of, prompt_kinds
from echoplan.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("tiny_sam")


@pytest.fixture
def trained(frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> FoldSetup:
    root = frame_setup.preprocessed.parents[1]
    for name in ("preprocessed", "results"):
        monkeypatch.setenv(f"echoplan_{name}", str(root / name))
    write_json(frame_setup.preprocessed / "splits_final.json", [{"train": frame_setup.train, "val": frame_setup.val}])
    plan, own = Plan.read(frame_setup.preprocessed / "EchoPlans.json"), Configuration("SAMTrainer", {}, "frame")
    replace(plan, trainers={"SAMTrainer": own}).write(frame_setup.preprocessed / "EchoPlans.json")
    setup = replace(frame_setup, model_folder=frame_setup.model_folder.with_name("SAMTrainer__EchoPlans__frame"))
    method = find_method("SAMTrainer").with_settings({"epochs": 1, "pretrained": False, "encoder_size": 32})
    Trainer(method, setup).run_training()
    return setup


def test_sam_is_compared_with_its_own_boxes_those_of_labels_and_those_near(
    trained: FoldSetup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_prompts(["Toy", "0", "-tr", "SAMTrainer", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["automatic", "box", "jittered_box"]
    assert lines[4] == f"written: {trained.folder / 'prompts'}"
    dice = [read_json(trained.folder / "prompts" / kind / "summary.json")["mean"]["LV"]["all"]["dice"]["mean"]
            for kind in ("automatic", "box", "jittered_box")]  # fmt: skip
    assert [float(line.split()[1]) for line in lines[1:4]] == pytest.approx([100 * value for value in dice], abs=0.01)

    network = ModelFolder.read(trained.model_folder).load_network(0)
    case = trained.val[0]
    boxes = CasePrompts(network, trained, "box")(case)
    labels = trained.store.labels(case)
    for frame, box in enumerate(boxes):
        known = (labels[frame] == 1).any()
        assert box.tolist() == list(box_of(labels[frame] == 1)) if known else box.isnan().all()
    near = CasePrompts(network, trained, "jittered_box")(case)
    assert torch.equal(near.isnan(), boxes.isnan()) and not torch.equal(near.nan_to_num(), boxes.nan_to_num())

    # What the network is told reaches it: the same masks as when it is asked directly, frame by frame.
    stored = trained.store.case(case)
    frames = torch.from_numpy((trained.store.frames(case).astype(np.float32) - stored.mean) / stored.std)
    with torch.inference_mode():
        alone = torch.cat([network(frames[t : t + 1, None][None], boxes[t : t + 1][None]) for t in range(len(frames))])
    together = segment_clip(network, frames, window=1, classes=1, batch=4, prompts=boxes)
    np.testing.assert_allclose(together[0], alone[:, 0, 0].sigmoid().numpy(), atol=1e-5)
    assert read_mask(trained.folder / "prompts" / "box" / f"{case}.nii.gz").shape == labels.shape


def test_a_network_that_takes_no_prompts_is_told_so() -> None:
    with pytest.raises(EchoPlanError, match=r"FrameUNet takes no prompts.*SAMTrainer"):
        prompt_kinds(build_network("unet", size=(32, 32), base_features=4))


def test_boxes_are_not_for_flipped_frames() -> None:
    network = build_network("unet", size=(32, 32), base_features=4)
    with pytest.raises(ValueError, match="not for flipped ones"):
        segment_clip(
            network, torch.zeros(2, 32, 32), window=1, classes=1, mirror_axes=["horizontal"], prompts=torch.zeros(2, 4)
        )
