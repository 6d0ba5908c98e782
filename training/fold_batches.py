"""The batches of a fold's cases, as its plan and the method's recipe ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from echoplan.errors import EchoPlanError

from .data import BatchLoader, SampleReader, build_augmentation, visible_frames
from .distributed import World
from .fold import FoldSetup
from .methods import Method


def fold_batches(
    method: Method[Any], setup: FoldSetup, *, seed: int, processes: int, world: World, training: bool
) -> BatchLoader:
    """The batches of the fold's training or validation cases.

    Args:
        method: whose samples they are, with its recipe.
        setup: the fold's plan, store and cases.
        seed: of the order and the augmentation.
        processes: data-loading workers.
        world: the processes that share the training batches; one of them validates.
        training: which cases.

    Raises:
        EchoPlanError: no training case has a label.
    """
    plan, recipe, classes = setup.plan, method.recipe, setup.description.classes
    stored = setup.stored_cases(setup.train if training else setup.val)
    if training:
        stored = [replace(case, labelled_frames=visible_frames(case, recipe.supervision)) for case in stored]
    samples = method.samples(stored, plan, training=training)
    if training and not samples:
        raise EchoPlanError("no training case has a labelled frame", file=setup.store.folder)
    augmentation = {
        dataset: build_augmentation(
            recipe.augmentation,
            rotation_degrees=each.rotation_degrees,
            mirror="horizontal" in each.mirror_axes,
        )
        for dataset, each in plan.each().items()
    }
    reader = SampleReader(
        setup.store,
        plan,
        classes,
        augmentation=augmentation if training else None,
        finish=method.extra_targets(classes) if training else None,
        supervision=recipe.supervision if training else "all",
        normalisation=recipe.input_normalisation,
    )
    return BatchLoader(
        samples,
        reader,
        batch_size=(recipe.batch_size or plan.batch_size) * (1 if training else method.validation_batches),
        batches_per_epoch=recipe.iterations_per_epoch if training else None,
        drop_last=recipe.drop_last and training,
        epochs=recipe.epochs,  # validation's workers stay from epoch to epoch, too
        shuffle=training,
        groups=setup.datasets_of(samples) if recipe.balance == "datasets" else None,
        seed=seed,
        processes=processes,
        rank=world.rank if training else 0,
        ranks=world.size if training else 1,
    )
