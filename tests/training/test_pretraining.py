"""Intermediate adaptation: what a training takes over from a checkpoint that was trained on other data."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.plans import Decision
from echoplan.training.checkpoint import ModelState, load_checkpoint, plain_settings, save_checkpoint
from echoplan.training.fold import FoldSetup
from echoplan.training.initialization import Start, describe_start, initial_network, is_checkpoint
from echoplan.training.methods import Method, method_registry
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.recipe import Recipe
from echoplan.training.trainer import Trainer

# What keeps the large networks quick.
QUICK: dict[str, dict[str, Any]] = {
    "UNetTrainer": {"base_features": 4},
    "UNet2DtTrainer": {"base_features": 4},
    "E3SAM2SmallTrainer": {"variant": "tiny"},
    "PKEchoNetTrainer": {"stages": 1},
    "EchoForgeTrainer": {"backbone": "resnet18", "channels": 32, "query_layers": 2},
}


def make_method(name: str, **settings: Any) -> Method[Any]:
    method = method_registry()[name]
    # Published weights are wanted wherever there are any: they must not be looked for beside a checkpoint.
    wanted = {"pretrained": True} if hasattr(method.recipe, "pretrained") else {}
    return method.with_settings({"epochs": 1, "iterations_per_epoch": 1, **wanted, **QUICK.get(name, {}), **settings})


def make_trainer(name: str, setup: FoldSetup, weights: Path | None = None, *, resume: bool = False) -> Trainer:
    folder = setup.model_folder.with_name(f"{name}__EchoPlans__{setup.plan.configuration}")
    return Trainer(make_method(name), replace(setup, model_folder=folder), weights=weights, resume=resume)


def start(method: Method[Any], setup: FoldSetup, weights: Path) -> tuple[nn.Module, Start]:
    return initial_network(method, size=setup.plan.size, classes=setup.description.classes, weights=weights)


def with_size(setup: FoldSetup, side: int) -> FoldSetup:
    decisions = {**setup.plan.decisions, "size": Decision([side, side], "made for tests", kind="fixed")}
    return replace(setup, plan=replace(setup.plan, decisions=decisions))


def write_checkpoint(method: Method[Any], setup: FoldSetup, file: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint of the method's network, filled with values that no initialisation gives."""
    size, classes = setup.plan.size, setup.description.classes
    with torch.device("meta"):
        network = method.build_network(size=size, classes=classes)
    random = torch.Generator().manual_seed(seed)
    learned = {
        key: torch.rand((), generator=random).expand(value.shape).to(value.dtype)
        for key, value in network.state_dict().items()
    }
    ModelState(
        trainer=method.name, trainer_source=method.name, settings=plain_settings(method.recipe.to_dict()), size=size,
        classes=classes, network=learned, epochs=7, dataset=setup.description.name,
    ).write(file)  # fmt: skip
    return learned


@pytest.mark.parametrize("name", sorted(method_registry()))
def test_every_trainer_starts_from_its_own_checkpoint(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("published weights were looked for")

    monkeypatch.setattr(torch.hub, "get_dir", forbidden)
    frames = method_registry()[name].requirements.frames
    setup: FoldSetup = request.getfixturevalue("frame_setup" if frames == 1 else "clip_setup")
    file = tmp_path / "checkpoint_final.pth"
    learned = write_checkpoint(make_method(name), setup, file)
    trainer = make_trainer(name, setup, weights=file)
    trainer.on_train_start()
    trainer.close()
    found = trainer.network.state_dict()
    assert found.keys() == learned.keys()
    of_the_data = {"grey_mean", "grey_sd"}  # EchoNet standardises by the cases that it is trained on
    assert all(torch.equal(found[key], value) for key, value in learned.items() if key not in of_the_data)
    start = {"kind": "checkpoint", "trainer": name, "epochs": 7, "dataset": "Toy", "left_new": []}
    assert start.items() <= json.loads((trainer.setup.folder / "debug.json").read_text())["started_from"].items()
    (log,) = trainer.setup.folder.glob("training_log_*.txt")
    said = log.read_text()
    assert f"started from checkpoint {file} ({name}, 7 epochs, Toy); parameters that learn" in said


class Positioned(nn.Module):
    """A network with a table of the input's size, and a last layer of the number of classes."""

    def __init__(self, size: tuple[int, int], classes: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 1)
        self.positions = nn.Parameter(torch.zeros(width, *size))
        self.last = nn.Conv2d(width, classes, 1)


@dataclass(frozen=True)
class PositionedRecipe(Recipe):
    width: int = 3


class PositionedMethod(UNetMethod):
    recipe_class = PositionedRecipe

    def build_network(self, *, size: tuple[int, int], classes: int, pretrained: Any = False) -> nn.Module:
        assert pretrained is False
        return Positioned(size, classes, self.recipe.width)


def test_what_depends_on_size_or_classes_stays_new_and_is_named(frame_setup: FoldSetup, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_best.pth"
    learned = write_checkpoint(PositionedMethod(), with_size(frame_setup, 16), file)
    three = DatasetDescription("Toy", labels={"background": 0, "LV": 1, "MYO": 2})
    for setup, left in (
        (with_size(frame_setup, 16), []),
        (frame_setup, ["positions"]),
        (replace(frame_setup, description=three), ["positions", "last.weight", "last.bias"]),
    ):
        torch.manual_seed(1)
        network, began = start(PositionedMethod(), setup, file)
        torch.manual_seed(1)
        new = Positioned(setup.plan.size, setup.description.classes, 3).state_dict()
        assert began["left_new"] == left
        for key, value in network.state_dict().items():
            assert torch.equal(value, new[key] if key in left else learned[key]), key
        said = describe_start(began)
        assert said.endswith(f"input size or number of classes: {', '.join(left)}" if left else "7 epochs, Toy)")


def test_a_checkpoint_of_another_trainer_or_network_is_refused(frame_setup: FoldSetup, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    write_checkpoint(make_method("UNetTrainer"), frame_setup, file)
    with pytest.raises(
        EchoPlanError, match=r"trained by UNetTrainer, not by PositionedMethod.*start from a checkpoint"
    ):
        start(PositionedMethod(), frame_setup, file)
    larger = make_method("UNetTrainer", base_features=8)
    with pytest.raises(
        EchoPlanError, match=r"instead of \(8, 1, 3, 3\); its settings differ \(base_features=4 there, 8 h"
    ):
        start(larger, frame_setup, file)
    save_checkpoint(file, {**load_checkpoint(file), "format": 99})
    with pytest.raises(EchoPlanError, match="checkpoint is of another format"):
        start(make_method("UNetTrainer"), frame_setup, file)


def test_published_weights_still_go_to_the_network(clip_setup: FoldSetup, tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    torch.manual_seed(5)
    published = torchvision.models.resnet18().state_dict()
    torch.save(published, file)
    assert not is_checkpoint(file)
    network, began = start(make_method("PKEchoNetR18Trainer"), clip_setup, file)
    assert began == {"kind": "published weights", "file": str(file)}
    assert any(torch.equal(value, published["layer1.0.conv1.weight"]) for value in network.state_dict().values())
    (tmp_path / "text.pth").write_text("no weights")
    assert not is_checkpoint(tmp_path / "text.pth")
    with pytest.raises(EchoPlanError, match="no pretrained weights for the network unet"):
        start(make_method("UNetTrainer"), clip_setup, tmp_path / "text.pth")


def test_a_resumed_training_remembers_how_it_began(frame_setup: FoldSetup, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    write_checkpoint(make_method("UNetTrainer"), frame_setup, file)
    make_trainer("UNetTrainer", frame_setup, weights=file).run_training()
    again = make_trainer("UNetTrainer", frame_setup, weights=tmp_path / "gone.pth", resume=True)
    again.on_train_start()
    again.close()
    final = load_checkpoint(again.setup.folder / "checkpoint_final.pth")
    assert again.started_from["file"] == final["started_from"]["file"] == str(file)
    assert json.loads((again.setup.folder / "debug.json").read_text())["started_from"]["epochs"] == 7
    assert all(torch.equal(final["network"][key], value) for key, value in again.network.state_dict().items())
