from __future__ import annotations

import pytest
import torch
from torch import nn

from echoplan.training.compilation import CompiledModel
from echoplan.training.fold import FoldSetup
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.trainer import Trainer


def test_a_compiled_model_gives_what_the_model_gives() -> None:
    seen = []

    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph.forward

    model, said = nn.Linear(3, 2), []
    compiled = CompiledModel(model, said.append, backend=backend)
    x = torch.randn(4, 3)
    torch.testing.assert_close(compiled(x), model(x))
    assert seen and not said


def test_a_compiler_that_fails_is_named_once_and_left() -> None:
    def backend(graph, inputs):
        raise RuntimeError("no compiler here")

    model, said = nn.Linear(3, 2), []
    compiled = CompiledModel(model, said.append, backend=backend)
    x = torch.randn(4, 3)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x))
    assert len(said) == 1 and "torch.compile failed" in said[0] and "goes on without it" in said[0]


def test_errors_of_the_model_itself_are_not_taken_for_the_compilers() -> None:
    compiled = CompiledModel(nn.Linear(3, 2), print, backend="eager")
    with pytest.raises(RuntimeError, match="shape"):
        compiled(torch.randn(4, 5))


def test_training_goes_on_without_a_compiler(frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(model, **_):
        def fails(*inputs):
            raise torch._dynamo.exc.TorchDynamoException("no C compiler")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    settings = {"epochs": 1, "iterations_per_epoch": 2, "base_features": 4, "compile": True}
    trainer = Trainer(UNetMethod().with_settings(settings), frame_setup)
    trainer.run_training()
    log = next(trainer.setup.folder.glob("training_log_*.txt")).read_text()
    assert log.count("torch.compile failed (no C compiler)") == 1
    assert (trainer.setup.folder / "checkpoint_final.pth").exists()


def test_a_compiler_that_fails_at_the_gradient_is_left_and_the_step_taken_again(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are compiled in the backward pass, where no call of the model can catch what goes wrong."""

    def no_gradient_kernel(_: torch.Tensor) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no gradient kernel")

    def compiled(model, **_):
        def call(*inputs):
            output = model(*inputs)
            output.logits.register_hook(no_gradient_kernel)
            return output

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    settings = {"epochs": 1, "iterations_per_epoch": 2, "base_features": 4, "compile": True}
    trainer = Trainer(UNetMethod().with_settings(settings), frame_setup)
    trainer.run_training()
    log = next(trainer.setup.folder.glob("training_log_*.txt")).read_text()
    assert log.count("torch.compile failed (no gradient kernel)") == 1
    assert trainer.step.iteration == 2


def test_what_a_compiled_gradient_itself_runs_into_is_not_the_compilers() -> None:
    compiled = CompiledModel(nn.Linear(3, 2), print, backend="eager")
    assert not compiled.give_up(torch.OutOfMemoryError("CUDA out of memory"))
    assert not compiled.give_up(RuntimeError("the loss became nan"))
