"""The network that EchoNet-Dynamic's authors published, from their file to a mask; random weights stand for theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.segmentation import deeplabv3_resnet50

from echoplan.errors import EchoPlanError
from echoplan.inference import EchoPredictor, choose_models
from echoplan.inference.archive import install_published
from echoplan.paths import Folders

sys.path.insert(0, str(Path(__file__).parents[1] / "networks"))

from published_networks import authors_state


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False, num_classes=1)
    file = tmp_path_factory.mktemp("usb") / "deeplabv3_resnet50_random.pt"
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"epoch": 28, "state_dict": state, "best_loss": 0.1, "loss": 0.09, "opt_dict": {"state": {}}}, file)
    return file


def test_the_published_network_predicts_as_its_authors_would(published: Path, tmp_path: Path) -> None:
    where = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    model = install_published(published, where, trainer="EchoNetTrainer", settings={"grey_mean": 30.0})
    assert model.relative_to(where.results) == Path("Dataset001_EchoNet-Dynamic/EchoNetTrainer__Published__frame")
    assert choose_models(where).members == ((model, None),)
    frames = np.random.default_rng(0).integers(0, 256, (2, 112, 112), np.uint8)
    found = EchoPredictor.from_model_folder(model, device="cpu").predict(frames)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False, num_classes=1).eval()
    state = torch.load(published, weights_only=True)["state_dict"]
    theirs.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    with torch.inference_mode():
        seen = (torch.from_numpy(frames).float()[:, None].expand(-1, 3, -1, -1) - 30) / 50
        expected = theirs(seen)["out"].sigmoid()[:, 0]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)


def test_what_is_there_stays_and_what_is_not_theirs_is_refused(published: Path, tmp_path: Path) -> None:
    where = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    with pytest.raises(EchoPlanError, match=r"no published network .*--weights .*trainable=locator"):
        install_published(published, where, trainer="SAMTrainer")
    install_published(published, where, trainer="EchoNetTrainer", name="Stanford")
    with pytest.raises(EchoPlanError, match="there already"):
        install_published(published, where, trainer="EchoNetTrainer", name="Stanford")
    install_published(published, where, trainer="EchoNetTrainer", name="Stanford", overwrite=True)
    torch.save({"state_dict": {"module.classifier.0.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(EchoPlanError, match=r"lack backbone\.conv1\.weight"):
        install_published(tmp_path / "other.pt", where, trainer="EchoNetTrainer", name="Other")
    assert not (where.results / "Dataset002_Other").exists()


def test_e3sam2s_published_network_begins_in_the_middle_and_may_be_told_a_size(tmp_path: Path) -> None:
    where = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    torch.save(authors_state(), tmp_path / "best_echonet.pth", _use_new_zipfile_serialization=False)
    model = install_published(
        tmp_path / "best_echonet.pth", where, trainer="E3SAM2SmallTrainer", name="EchoNet", size=64
    )
    assert model.relative_to(where.results) == Path("Dataset001_EchoNet/E3SAM2SmallTrainer__Published__clip")
    predictor = EchoPredictor.from_model_folder(model, device="cpu")
    network = predictor.members[0].networks[0]
    assert (network.size, network.settings.prompt, network.settings.threshold) == (64, "centre", 0.6)
    found = predictor.predict(np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8))
    assert found.probabilities.shape == (3, 64, 64)
