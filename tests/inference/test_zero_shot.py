"""The untrained row: foundation models on a raw dataset, told by its labels where the structure is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, Sam

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.evaluation.comparison.method_results import read_predictions
from echoplan.evaluation.comparison.scores import frame_scores, read_ef_table
from echoplan.files import write_json
from echoplan.imageio import read_mask, write_clip, write_mask
from echoplan.inference.foundation.networks import EnlargedFrames, FoundationModel, rescale_prompts
from echoplan.inference.foundation.zero_shot import run_zero_shot
from echoplan.networks import build_network
from echoplan.networks.e3sam2.prompts import Prompts
from echoplan.networks.e3sam2.weights import _NAMES
from echoplan.networks.sam.parts import build_mask_decoder, build_prompt_encoder, vit_settings
from echoplan.networks.sam.settings import VARIANTS
from echoplan.paths import Folders
from echoplan.scripts import zero_shot
from echoplan.training.prompts import box_of

from .conftest import make_heart

CASES = ("patient0_A4C", "patient1_A4C", "patient2_A4C")
SIZE = 64


@pytest.fixture
def raw(folders: Folders) -> EchoDataset:
    """Three clips of 48 x 80 pixels, labelled at ED and ES; the third is for testing. Two folds of the others."""
    folder = folders.raw / "Dataset001_Phantom"
    cases = []
    for index, name in enumerate(CASES):
        heart = make_heart(frames=7 + index, shape=(48, 80), dimmer=20 * index)
        labels = np.full_like(heart.mask, 255)
        labels[[1, heart.es_frame]] = heart.mask[[1, heart.es_frame]]
        write_clip(folder / "imagesTr" / f"{name}.nii.gz", heart.clip)
        write_mask(folder / "labelsTr" / f"truth_of_{index}.nii.gz", labels, like=heart.clip)
        cases.append(
            Case(
                case=name, patient=name[:8], image=f"imagesTr/{name}.nii.gz", label=f"labelsTr/truth_of_{index}.nii.gz",
                view="A4C", split="test" if index == 2 else "", ed_frame=1, es_frame=heart.es_frame, ef_percent=55.0,
            )
        )  # fmt: skip
    dataset = EchoDataset(folder, DatasetDescription("Phantom"), tuple(cases))
    dataset.write()
    splits = [{"train": [CASES[1]], "val": [CASES[0]]}, {"train": [CASES[0]], "val": [CASES[1]]}]
    write_json(folders.preprocessed / folder.name / "splits_final.json", splits)
    return dataset


@pytest.fixture
def sam_weights(tiny_sam: None, tmp_path: Path) -> Path:
    """Random weights of the segment-anything package's own model."""
    torch.manual_seed(0)
    sam = Sam(ImageEncoderViT(**vit_settings(VARIANTS["vit_b"])), build_prompt_encoder(1024), build_mask_decoder())
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


@pytest.fixture(scope="module")
def sam2_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names that SAM2's own file has."""
    torch.manual_seed(0)
    published = {new: old for old, new in _NAMES.items()}
    state = {}
    for name, value in build_network("sam2", size=(SIZE, SIZE)).state_dict().items():
        new = next((part for part in published if name.startswith(part)), None)
        if new is not None:
            state[published[new] + name.removeprefix(new)] = value
    file = tmp_path_factory.mktemp("sam2") / "sam2.pt"
    torch.save({"model": state}, file)
    return file


@pytest.fixture
def environment(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"echoplan_{name}", str(getattr(folders, name)))


def test_sam_is_told_the_box_of_every_labelled_frame(raw: EchoDataset, folders: Folders, sam_weights: Path) -> None:
    chosen = FoundationModel("sam", size=SIZE, weights=sam_weights)
    run = run_zero_shot(folders, "Phantom", chosen)
    assert run.folder == folders.results / "Dataset001_Phantom" / "zero_shot" / "sam_64_box"
    assert (run.done, run.kept, run.failures) == (list(CASES[:2]), [], {})
    network = chosen.load()
    for case in raw.training_cases():
        clip = raw.load_clip(case)
        labels, found = raw.load_mask(case), read_mask(run.folder / f"{case.case}.nii.gz")
        assert found.shape == clip.frames.shape
        for frame in range(len(clip)):
            if (labels[frame] == 255).all():
                assert not found[frame].any()
                continue
            box = torch.tensor(box_of(labels[frame] == 1))[None, None]
            with torch.inference_mode():
                logits = network(torch.from_numpy(clip.frames[frame])[None, None, None].float(), box)
            assert np.array_equal(found[frame] > 0, logits[0, 0, 0].numpy() > 0)
    judged = json.loads((run.folder / "summary.json").read_text())
    assert judged["per_case"].keys() == set(CASES[:2]) and judged["missing"] == []
    assert {group: found["frames"] for group, found in judged["mean"]["LV"].items()} == {
        "all": 4, "end_diastole": 2, "end_systole": 2
    }  # fmt: skip
    # It stands beside folders of predictions as it is, and beside cross-validated methods fold by fold.
    (read,) = read_predictions({"sam": run.folder}, run.folder / "references", labels={"LV": 1})
    assert read.scores.equals(frame_scores(judged["per_case"])) and not read.unjudged
    assert set(read.ef["reference"]) == {"masks"} and len(read.ef) == 2
    assert set(read_ef_table(run.folder, "folland", "table")["reference_ef_percent"]) == {55.0}
    for fold, case in enumerate(CASES[:2]):
        own = json.loads((run.folder / f"fold_{fold}" / "validation" / "summary.json").read_text())
        assert own["per_case"] == {case: judged["per_case"][case]}


def test_jittered_boxes_are_others_and_the_same_each_time(raw: EchoDataset, sam_weights: Path) -> None:
    case = raw.training_cases()[0]
    frames, labels = raw.load_clip(case).frames, raw.load_mask(case)
    masks = {1: labels[1] == 1}
    asked = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, clip: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
            asked.append(boxes[0, 0])
            return clip

    for prompt in ("box", "jittered_box", "jittered_box"):
        FoundationModel("sam", prompt).segment(Spy(), frames, masks, case.case)
    exact, one, again = asked
    assert exact.tolist() == list(box_of(masks[1]))
    assert torch.equal(one, again) and not torch.equal(one, exact)
    assert (one - exact).abs().max() <= 0.1 * (exact[2:] - exact[:2]).max() + 1e-4


def test_sam2_follows_a_mask_through_the_labelled_frames(
    raw: EchoDataset, folders: Folders, sam2_weights: Path
) -> None:
    run = run_zero_shot(folders, "Phantom", FoundationModel("sam2", "mask", size=SIZE, weights=sam2_weights), folds=[1])
    assert run.done == [CASES[1]] and run.folder.name == "sam2_64_mask"
    case = raw.case(CASES[1])
    labels, found = raw.load_mask(case), read_mask(run.folder / f"{case.case}.nii.gz")
    # The mask comes back where it was given: on the clip's own grid, which is not square.
    overlap = 2 * ((found[1] == 1) & (labels[1] == 1)).sum() / ((found[1] == 1).sum() + (labels[1] == 1).sum())
    assert overlap > 0.95
    assert not found[0].any() and not found[case.es_frame + 1 :].any()
    assert not (run.folder / "fold_0").exists() and (run.folder / "fold_1" / "validation" / "summary.json").exists()


def test_the_test_cases_have_a_folder_of_their_own(
    raw: EchoDataset, folders: Folders, sam2_weights: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "Phantom",
        "-m",
        "sam2",
        "--size",
        str(SIZE),
        "-weights",
        str(sam2_weights),
        "--prompt",
        "mask",
        "-np",
        "0",
    ]
    assert zero_shot([*words, "--split", "test", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = folders.results / "Dataset001_Phantom" / "zero_shot" / "sam2_64_mask_test"
    assert (folder / f"{CASES[2]}.nii.gz").is_file() and lines[-1] == f"written: {folder}"
    frames = json.loads((folder / "summary.json").read_text())["per_case"][CASES[2]]["frames"]
    assert frames[0]["LV"]["dice"] > 0.95  # given, and not shown
    assert "Dice, %" in lines[1] and "HD95, mm" in lines[1]
    assert lines[2].split()[:3] == ["all", "1", f"{100 * frames[1]['LV']['dice']:.2f}"]
    assert [line.split()[0] for line in lines[2:4]] == ["all", "ES"]
    with pytest.raises(SystemExit):
        zero_shot(["Phantom", "-m", "sam3"])


def test_what_is_finished_is_kept_and_what_is_broken_named(
    raw: EchoDataset, folders: Folders, sam_weights: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["Phantom", "-m", "sam", "--size", str(SIZE), "-weights", str(sam_weights), "-np", "0", "--device", "cpu"]
    image = raw.folder / raw.case(CASES[1]).image
    whole = image.read_bytes()
    image.write_bytes(b"broken")
    assert zero_shot(words) == 1
    assert CASES[1] in capsys.readouterr().err
    image.write_bytes(whole)
    assert zero_shot(words) == 1  # it is not said what to do with the results that are there
    assert "--c keeps them" in capsys.readouterr().err
    folder = folders.results / "Dataset001_Phantom" / "zero_shot" / "sam_64_box"
    before = (folder / f"{CASES[0]}.nii.gz").stat().st_mtime_ns
    assert zero_shot([*words, "--continue_prediction"]) == 0
    assert "2 cases, 1 of them finished before" in capsys.readouterr().out
    assert (folder / f"{CASES[0]}.nii.gz").stat().st_mtime_ns == before
    other = sam_weights.with_name("other.pth")
    other.write_bytes(sam_weights.read_bytes())
    words[words.index(str(sam_weights))] = str(other)
    assert zero_shot([*words, "--continue_prediction"]) == 1
    assert "made with other settings: weights" in capsys.readouterr().err
    assert zero_shot([*words, "--overwrite"]) == 0
    assert (folder / f"{CASES[0]}.nii.gz").stat().st_mtime_ns != before


def test_what_cannot_be_is_refused(raw: EchoDataset, folders: Folders) -> None:
    for settings, message in (
        ({"model": "sam3"}, "no model 'sam3'.*sam, medsam, lite_medsam, sam2"),
        ({"model": "sam", "prompt": "point"}, "sam takes no prompt 'point'.*box, jittered_box"),
        ({"model": "medsam", "variant": "vit_h"}, "medsam takes no variant 'vit_h'.*vit_b"),
    ):
        with pytest.raises(EchoPlanError, match=message):
            FoundationModel(**settings)
    with pytest.raises(EchoPlanError, match="multiples of 32 pixels, not 50"):
        run_zero_shot(folders, "Phantom", FoundationModel("sam2", size=50, weights=folders.raw))
    assert not folders.results.exists()  # nothing is begun that cannot be done
    with pytest.raises(EchoPlanError, match=r"the folds are 0 to 1, not 7"):
        run_zero_shot(folders, "Phantom", FoundationModel("sam"), folds=[7])


def test_prompts_move_with_the_image_that_is_resized() -> None:
    mask = np.zeros((48, 80), bool)
    mask[8:40, 20:60] = True
    enlarged = np.kron(mask, np.ones((160 // 48 + 1, 2)))[:, :160]  # 192 x 160
    told = Prompts.given_boxes(torch.tensor([box_of(mask)]), [3])
    boxes = rescale_prompts(told, (48, 80), 160).boxes[0]
    wide = box_of(enlarged[:, :] > 0)
    np.testing.assert_allclose(boxes[[0, 2]].numpy(), [wide[0] + 0.5, wide[2] - 0.5])
    np.testing.assert_allclose(boxes[[1, 3]].numpy(), [(8.5 * 160 / 48) - 0.5, (39.5 * 160 / 48) - 0.5], rtol=1e-6)
    masks = rescale_prompts(Prompts.given_masks(torch.from_numpy(mask)[None], [3]), (48, 80), 160).masks[0].numpy()
    assert masks.shape == (160, 160)
    np.testing.assert_allclose(box_of(masks), (40, 27, 119, 132), atol=1)
    points = rescale_prompts(Prompts.given(torch.tensor([[0.0, 47.0]]), [0]), (48, 80), 160).points
    np.testing.assert_allclose(points.numpy(), [[0.5, 47.5 * 160 / 48 - 0.5]], rtol=1e-6)


def test_frames_are_standardised_as_sam2_wants_them() -> None:
    frames = np.full((3, 10, 12), 255, np.uint8)
    frames[1] = 0
    seen = EnlargedFrames(frames, 32)
    assert (len(seen), seen.shape) == (3, (3, 3, 32, 32))
    white, black = seen[[0, 1]][:, :, 5, 5]
    torch.testing.assert_close(white, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))
    torch.testing.assert_close(black, torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
