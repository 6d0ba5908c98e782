"""The trainers of SAM2 and E3SAM2: prompts, losses, switches, and what validation may see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.networks import ClipOutput
from echoplan.networks.e3sam2 import attention
from echoplan.plans import Configuration, Plan
from echoplan.scripts import compare_prompts
from echoplan.training.fold import FoldSetup
from echoplan.training.losses import mask_quality_loss, presence_loss
from echoplan.training.methods import e3sam2 as module
from echoplan.training.methods import find_method
from echoplan.training.metrics import read_metrics
from echoplan.training.prompts import LABEL_KINDS, box_of, draw_prompts, inner_point, jittered_point, prompt_of_case
from echoplan.training.trainer import Trainer

from ..slim import narrow_sam2


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        narrow_sam2(patch)
        yield


def make_method(name: str, **settings: object) -> module.SAM2Family:
    return find_method(name).with_settings({"epochs": 2, "pretrained": False, **settings})


def make_trainer(name: str, setup: FoldSetup, **settings: object) -> Trainer:
    folder = setup.model_folder.with_name(f"{name}__EchoPlans__clip")
    return Trainer(make_method(name, **settings), replace(setup, model_folder=folder), seed=1)


SCORED = {"E3SAM2Trainer": {"object_score": True, "quality_weight": 0.1, "presence_weight": 0.1}}


def discs() -> torch.Tensor:
    """Labels (2, 3, 32, 32): the first clip is labelled at frame 0 and 2, the second nowhere."""
    rows, columns = np.mgrid[:32, :32]
    labels = np.full((2, 3, 32, 32), 255, np.uint8)
    labels[0, 0] = (rows - 12) ** 2 + (columns - 20) ** 2 <= 8**2
    labels[0, 2] = (rows - 14) ** 2 + (columns - 18) ** 2 <= 5**2
    return torch.from_numpy(labels)


def test_the_inner_point_is_the_deepest_and_a_jittered_one_is_near_it_and_inside() -> None:
    mask = discs()[0, 0].numpy() == 1
    assert inner_point(mask) == (12, 20)
    found = {jittered_point(mask, draw) for draw in np.linspace(0, 0.999, 40)}
    assert len(found) > 10 and all(mask[point] for point in found)
    reach = 0.25 * np.sqrt(mask.sum())
    assert all(np.hypot(row - 12, column - 20) <= reach for row, column in found)
    # A mask that fills the image has its depth measured from the image's edge.
    assert inner_point(np.ones((9, 9), bool)) == (4, 4)


def test_prompts_come_from_labels_in_their_shares_and_never_without_a_label() -> None:
    labels = discs()
    always = draw_prompts(labels, automatic="auto", shares={"point": 1.0})
    assert always.kinds == ("given", "auto")
    point = {0: (20.0, 12.0), 2: (18.0, 14.0)}[always.frames[0]]  # x, y
    assert tuple(always.points[0].tolist()) == point
    never = draw_prompts(labels, automatic="box", shares={})
    assert never.kinds == ("box", "box")
    first = draw_prompts(labels.flip(1)[:, 1:], automatic="auto", shares={"pixel": 1.0}, first=True, draw=0.5)
    assert first.kinds == ("auto", "auto")  # the first frame has no label
    middle = draw_prompts(labels, automatic="auto", shares={"pixel": 1.0}, first=True, draw=0.5)
    pixels = torch.nonzero(labels[0, 0] == 1)
    assert middle.frames[0] == 0 and middle.points[0].flip(0).tolist() == pixels[len(pixels) // 2].tolist()
    torch.manual_seed(0)
    many = [draw_prompts(labels[:1], automatic="auto", shares={"point": 0.3, "jittered": 0.2}) for _ in range(400)]
    given = [prompts for prompts in many if prompts.kinds == ("given",)]
    assert 0.42 < len(given) / 400 < 0.58
    assert {prompts.frames[0] for prompts in given} == {0, 2}
    exact = sum(tuple(p.points[0].tolist()) in {(20.0, 12.0), (18.0, 14.0)} for p in given)
    assert 0.45 < exact / len(given) < 0.75
    torch.manual_seed(0)
    again = draw_prompts(labels[:1], automatic="auto", shares={"point": 0.3, "jittered": 0.2})
    assert again.kinds == many[0].kinds and torch.equal(again.points, many[0].points)


def test_the_quality_loss_is_the_distance_to_the_true_iou_of_labelled_frames() -> None:
    labels = torch.full((1, 2, 8, 8), 255, dtype=torch.uint8)
    labels[0, 0] = 0
    labels[0, 0, :, :4] = 1
    masks = torch.full((1, 2, 2, 8, 8), -5.0)
    masks[0, :, 0, :, :4] = 5.0  # IoU 1
    masks[0, :, 1, :, :2] = 5.0  # IoU 1/2
    iou = torch.tensor([[[0.9, 0.9], [0.0, 0.0]]], requires_grad=True)
    loss = mask_quality_loss(iou, masks, labels)
    assert loss.item() == pytest.approx((0.1 + 0.4) / 2)
    loss.backward()
    assert (iou.grad[0, 1] == 0).all()  # nobody labelled that frame
    assert iou.grad[0, 0].tolist() == [-0.5, 0.5]


def test_the_presence_loss_counts_labelled_frames_only() -> None:
    labels = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    labels[0, 0], labels[0, 1] = 1, 0
    score = torch.tensor([[2.0, 2.0, 2.0]], requires_grad=True)
    loss = presence_loss(score, labels)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(2.0))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert score.grad[0, 2] == 0 and score.grad[0, 0] < 0 < score.grad[0, 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    from .conftest import make_setup

    trainer = make_trainer(
        "E3SAM2Trainer", make_setup(tmp_path_factory.mktemp("e3sam2"), frames=3, batch_size=2), epochs=4,
        learning_rate=1e-3,
    )  # fmt: skip
    trainer.run_training()
    return trainer


def test_it_trains_and_every_term_is_written_down(trained) -> None:
    metrics = read_metrics(trained.setup.folder)
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    weights = {"segmentation": 0.8, "coarse": 0.2, "quality": 0.0, "entropy": 0.1, "edges": 0.2}
    assert {name for name in metrics[0] if name.startswith("loss_")} == {f"loss_{name}" for name in weights}
    total = sum(weight * metrics[0][f"loss_{name}"] for name, weight in weights.items())
    assert metrics[0]["train_loss"] == pytest.approx(total, rel=1e-4)


def test_nothing_is_learned_from_unlabelled_clips(trained) -> None:
    network = trained.network.train()
    batch = {"clip": torch.randn(1, 3, 1, 32, 32), "labels": torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)}
    network.zero_grad()
    loss = trained.loss(batch)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("name", ["SAM2Trainer", "E3SAM2Trainer"])
def test_a_frame_without_a_label_has_no_part_in_any_term(name: str) -> None:
    """Whatever the network says of it: the gradient there is zero in every term, and elsewhere it is not."""
    random = torch.Generator().manual_seed(0)
    method, unlabelled, length = make_method(name, **SCORED.get(name, {})), 1, 3
    shapes = {"coarse": (1, 2, 2), "masks": (3, 8, 8), "iou": (3,), "object_score": (), "edges": (1, 8, 8)}
    found = {name: torch.randn(1, length, *shape, generator=random) for name, shape in shapes.items()}
    found["iou"] = found["iou"].sigmoid()
    entropies = [torch.rand(1, length, tokens, generator=random) for tokens in (256, 64)]
    logits = torch.randn(1, length, 1, 32, 32, generator=random)
    for each in (*found.values(), *entropies, logits):
        each.requires_grad_()
    labels = discs()[:1]
    labels[0, unlabelled] = 255
    terms = method.terms(ClipOutput(logits, {**found, "entropies": entropies}), labels, 0)
    assert {"segmentation", "coarse", "quality", "presence"} <= terms.keys()
    sum(value for _, value in terms.values()).backward()
    read = [logits, *(found[name] for name in ("coarse", "iou", "object_score"))]  # masks teach the IoU head alone
    read += [found["edges"], *entropies] if name == "E3SAM2Trainer" else []
    for each in read:
        assert not each.grad[0, unlabelled].any()
        assert all(each.grad[0, frame].any() for frame in (0, 2))


def test_each_kind_of_prompt_is_drawn_from_the_label_of_its_frame() -> None:
    labels = discs()[:1]
    for kind in LABEL_KINDS:
        drawn = draw_prompts(labels, automatic="none", shares={kind: 1.0})
        mask = (labels[0, drawn.frames[0]] == 1).numpy()
        x0, y0, x1, y1 = box_of(mask)
        if kind == "mask":
            assert drawn.kinds == ("given_mask",) and np.array_equal(drawn.masks[0].numpy(), mask)
        elif "box" in kind:
            reach = 0.1 * max(x1 - x0, y1 - y0) + 1e-4 if kind == "jittered_box" else 0.0
            assert drawn.kinds == ("given_box",)
            np.testing.assert_allclose(drawn.boxes[0].numpy(), (x0, y0, x1, y1), atol=reach)
            assert (kind == "box") is (drawn.boxes[0].tolist() == [x0, y0, x1, y1])
        else:
            assert drawn.kinds == ("given",)
    torch.manual_seed(0)
    shares = {kind: 0.2 for kind in LABEL_KINDS if kind != "pixel"}
    kinds = [draw_prompts(labels, automatic="none", shares=shares).kinds[0] for _ in range(200)]
    assert {kind: kinds.count(kind) // 20 for kind in ("given", "given_box", "given_mask")} == pytest.approx(
        {"given": 4, "given_box": 4, "given_mask": 2}, abs=1
    )


@pytest.mark.parametrize(
    ("prompt", "share"), [("mask", None), ("none", "box"), ("box", "mask"), ("auto", "jittered_box")]
)
def test_sam2_trains_with_every_kind_of_prompt(clip_setup: FoldSetup, prompt: str, share: str | None) -> None:
    settings = {"point_share": 0.0, "jittered_share": 0.0, **({} if share is None else {f"{share}_share": 1.0})}
    trainer = make_trainer("SAM2Trainer", clip_setup, prompt=prompt, **settings)
    trainer.on_epoch_start(0)
    batch = {"clip": torch.randn(1, 3, 1, 32, 32), "labels": discs()[:1]}
    loss = trainer.loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and trainer.network.memory.attention.layers[0].linear1.weight.grad.any()
    learned = trainer.network.prompting.encoder.mask_downscaling[0].weight.grad
    assert (learned is not None and bool(learned.any())) is (prompt == "mask")


def test_validation_sees_frames_only(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a prompt was drawn from labels")

    monkeypatch.setattr(module, "draw_prompts", forbidden)
    assert trained.validate_epoch() is not None
    with pytest.raises(AssertionError, match="from labels"):
        trained.on_device({"labels": torch.zeros(1, 3, 32, 32)}, training=True)


def test_switches_reach_the_network_and_the_loss() -> None:
    plain = make_method("E3SAM2Trainer", edge_supervision=False, entropy_regularisation=False)
    labels = torch.ones(1, 2, 32, 32, dtype=torch.uint8)
    auxiliary = {
        "coarse": torch.zeros(1, 2, 1, 2, 2), "iou": torch.ones(1, 2, 3), "masks": torch.ones(1, 2, 3, 8, 8),
        "object_score": torch.ones(1, 2),
    }  # fmt: skip
    terms = plain.terms(ClipOutput(torch.zeros(1, 2, 1, 32, 32), auxiliary), labels, 0)
    assert set(terms) == {"segmentation", "coarse", "quality"}
    assert plain.build_network(size=(32, 32), classes=1).edges is None
    assert make_method("E3SAM2Trainer", pretrained=True).recipe.network_settings().learning_part == "adapted"
    assert find_method("SAM2Trainer").recipe.network_settings().trainable == "auto"  # all but the trunk
    assert make_method("SAM2Trainer").recipe.network_settings().trainable == "all"  # from scratch
    assert make_method("SAM2Trainer", trainable="decoder").recipe.network_settings().trainable == "decoder"
    with pytest.raises(EchoPlanError, match="add up to 1"):
        make_method("SAM2Trainer", point_share=0.8, jittered_share=0.4)


def test_a_design_is_values_of_settings_each_of_which_can_be_set_alone() -> None:
    paper, released = (find_method("E3SAM2SmallTrainer").with_settings({"design": name}) for name in module.DESIGNS)
    assert paper.recipe == find_method("E3SAM2SmallTrainer").recipe
    values = released.recipe.to_dict()
    assert {name: values[name] for name in module.RELEASED} == module.RELEASED
    assert all(paper.recipe.to_dict()[name] != value for name, value in module.RELEASED.items())
    assert values["variant"] == "small" and not values["memory_across_clips"] and not values["true_point_at_test"]
    alone = find_method("E3SAM2Trainer").with_settings({"design": "released", "threshold": 0.5, "entropy_weight": 0.2})
    assert (alone.recipe.network.threshold, alone.recipe.entropy_weight, alone.recipe.dice_weight) == (0.5, 0.2, 0.8)
    assert released.with_settings({"design": "paper"}).recipe == paper.recipe
    assert released.with_settings(values).recipe == released.recipe  # as a checkpoint is read
    with pytest.raises(EchoPlanError, match=r"design cannot be .mine.*paper, released"):
        find_method("E3SAM2Trainer").with_settings({"design": "mine"})


def test_a_checkpoint_of_before_the_designs_is_the_network_that_it_was() -> None:
    recipe = find_method("E3SAM2Trainer").recipe
    kinds = (*fields(recipe), *fields(recipe.network))
    new = {item.name for item in kinds if "before" in item.metadata} | {"design"}
    named = {name: value for name, value in recipe.to_dict().items() if name not in new}
    old = recipe.with_settings(recipe.complete(named | {"attention": "ega", "memory": "confidence"})).network
    assert (old.adapter_place, old.later_prompt, old.memory_tokens, old.object_score) == ("after", "none", "sam2", True)
    assert (old.memory_frames, old.certainty_power, old.memory_written) == (7, 1.0, "before")


def test_equation_5_may_begin_later(clip_setup: FoldSetup) -> None:
    trainer = make_trainer("E3SAM2Trainer", clip_setup, entropy_from_epoch=1)
    output = trainer.network.train()(torch.randn(1, 3, 1, 32, 32))
    terms = [trainer.method.terms(output, discs()[:1], epoch) for epoch in (0, 1)]
    assert "entropy" not in terms[0] and terms[1]["entropy"][0] == 0.1


@pytest.mark.parametrize(
    ("settings", "counts"),
    [({}, True), ({"entropy_from_epoch": 2}, False), ({"entropy_regularisation": False}, False),
     ({"entropy_weight": 0.0}, False)],
)  # fmt: skip
def test_entropies_are_made_where_equation_5_counts(
    clip_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], counts: bool
) -> None:
    trainer = make_trainer("E3SAM2Trainer", clip_setup, attention="self", **settings)
    made, row_entropy = [], attention.row_entropy
    monkeypatch.setattr(attention, "row_entropy", lambda q, k: made.append(q) or row_entropy(q, k))
    trainer.on_epoch_start(1)
    batch = trainer.on_device(next(iter(trainer.training_batches.epoch(1))), training=True)
    trainer.loss(batch).backward()
    assert len(made) == (len(trainer.network.encoder.adapters) if counts else 0)
    assert ("loss_entropy" in trainer.metrics.take()) is counts
    trainer.on_epoch_start(0)
    made.clear()
    trainer.validate_epoch()
    assert not made


def test_a_true_point_at_test_is_told_in_validation_and_off_by_default(clip_setup: FoldSetup) -> None:
    told = []

    def network(clip: torch.Tensor, prompts: object = None) -> torch.Tensor:
        told.append(prompts)
        return clip

    batch = {"clip": torch.zeros(2, 3, 1, 32, 32), "labels": discs()}
    for settings in ({}, {"true_point_at_test": True}):
        method = make_method("E3SAM2Trainer", design="released", **settings)
        of_labels = method.prompts(batch, training=False)
        method.answer(network, batch if of_labels is None else {**batch, "prompts": of_labels})
        prompt = method.prompt_of_cases(method.build_network(size=(32, 32), classes=1), clip_setup)
        assert (prompt is None) is (told[-1] is None) is (not settings)
    assert told[-1].kinds == ("given", "point") and prompt(clip_setup.val[0]).kinds == ("given",)
    within = prompt(clip_setup.val[0])
    assert within.within([2, 0]).frames == (1,) and within.within([1, 2]) is None


def test_the_recipes_are_the_papers() -> None:
    for name in ("E3SAM2Trainer", "E3SAM2SmallTrainer", "SAM2Trainer"):
        recipe, needs = find_method(name).recipe, find_method(name).requirements
        assert (recipe.epochs, recipe.optimiser, needs.learning_rate, needs.batch_size) == (200, "adamw", 1e-4, 4)
        assert (needs.frames, needs.paper_size, needs.square, needs.multi_structure) == (10, 256, True, False)
    recipe = find_method("E3SAM2Trainer").recipe
    assert (recipe.segmentation_weight, recipe.entropy_weight, recipe.edge_weight) == (0.8, 0.1, 0.2)
    assert find_method("E3SAM2SmallTrainer").recipe.network.variant == "small"


def test_prompts_are_compared_as_typed(trained, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    setup = trained.setup
    root = setup.preprocessed.parents[1]
    monkeypatch.setenv("echoplan_preprocessed", str(root / "preprocessed"))
    monkeypatch.setenv("echoplan_results", str(root / "results"))
    write_json(setup.preprocessed / "splits_final.json", [{"train": setup.train, "val": setup.val}])
    plan, own = Plan.read(setup.preprocessed / "EchoPlans.json"), Configuration("E3SAM2Trainer", {}, "clip")
    replace(plan, trainers={"E3SAM2Trainer": own}).write(setup.preprocessed / "EchoPlans.json")
    assert compare_prompts(["Toy", "0", "-tr", "E3SAM2Trainer", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = ["automatic", "point", "jittered", "pixel", "box", "jittered_box", "mask"]
    assert [line.split()[0] for line in lines[1:8]] == kinds
    dice = {line.split()[0]: float(line.split()[1]) for line in lines[1:8]}
    assert all(50 < value <= 100 for value in dice.values()), dice
    summary = json.loads((setup.folder / "prompts" / "point" / "summary.json").read_text())
    assert 100 * summary["mean"]["LV"]["all"]["dice"]["mean"] == pytest.approx(dice["point"], abs=0.01)
    # Of the mask's line the frame is left out that the mask itself answers.
    frames = json.loads((setup.folder / "prompts" / "mask" / "summary.json").read_text())["per_case"][setup.val[0]]
    first, last = (frame["LV"]["dice"] for frame in frames["frames"])
    assert first > 0.9 and 100 * last == pytest.approx(dice["mask"], abs=0.01)
    assert compare_prompts(["Toy", "0", "-tr", "UNetTrainer"]) == 1  # nothing trained
    with pytest.raises(SystemExit):
        compare_prompts(["Toy", "0", "--oops"])


def test_a_prompt_of_a_case_is_drawn_from_its_first_label_and_repeats(trained) -> None:
    store, case = trained.setup.store, trained.setup.val[0]
    mask = store.labels(case, [0])[0] == 1
    point = prompt_of_case(store, case, kind="point")
    x, y = point.points[0].tolist()
    assert (int(y), int(x)) == inner_point(mask) and point.frames == (0,)
    near, again = (prompt_of_case(store, case, kind="jittered") for _ in range(2))
    assert torch.equal(near.points, again.points)
    assert mask[int(near.points[0, 1]), int(near.points[0, 0])]
    assert prompt_of_case(store, case, kind="automatic") is None
