"""How long a training takes is said in time; it stops when it is told to, or when it learns no more."""

from __future__ import annotations

import time

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from echoplan import scripts
from echoplan.errors import Terminated
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.commands import over_folds
from echoplan.training.fold import FoldSetup
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.metrics import epochs_since_best, read_metrics
from echoplan.training.pace import Pace
from echoplan.training.progress_picture import progress_figure
from echoplan.training.trainer import Trainer

SMALL = {"epochs": 3, "iterations_per_epoch": 3, "base_features": 4, "optimiser": "adamw", "learning_rate": 5e-3}


@pytest.fixture
def pace(tmp_path):
    """pace(epochs, batches) -> a Pace and the lines that it says."""

    def make(epochs, batches):
        said: list[str] = []
        device = torch.device("cpu")
        return Pace(epochs, batches, device=device, stop_file=tmp_path / "stop", say=said.append), said

    return make


def make_trainer(
    setup: FoldSetup, *, resume: bool = False, stop_at: float | None = None, **settings: object
) -> Trainer:
    method = UNetMethod().with_settings({**SMALL, **settings})
    return Trainer(method, setup, seed=1, resume=resume, stop_at=stop_at)


def log_of(trainer: Trainer) -> str:
    return "".join(file.read_text() for file in sorted(trainer.setup.folder.glob("training_log_*.txt")))


def test_after_20_batches_the_whole_time_is_said_once(pace):
    tells, said = pace(1000, 250)
    for done in range(1, 60):
        tells.batch(0, done, 30.0 if done < 3 else 3.2)  # the first ones take longer, and do not count
    assert said == ["epoch 0, batch 20 of 250: about 3.2 s a batch: 9.3 days for 1000 epochs; --epochs N trains fewer"]


def test_slow_batches_are_told_before_there_are_20_and_quick_trainings_need_no_plan(pace):
    tells, said = pace(10, 8)
    for done in range(1, 9):
        tells.batch(0, done, 40.0)
    assert len(said) == 1 and said[0].startswith("epoch 0, batch 4 of 8: about 40 s a batch: 51 min for 10 epochs")
    tells, said = pace(2, 30)
    for done in range(1, 31):
        tells.batch(0, done, 0.1)
    assert said == []


def test_each_epoch_says_what_is_left(pace):
    tells, said = pace(10, 4)
    assert tells.epoch(0, 7200.0).startswith(", about 18.0 h left (until ")
    assert tells.epoch(1, 3600.0).startswith(", about 12.0 h left")  # 8 epochs of 1.5 h
    assert tells.epoch(9, 3600.0) == ""
    for done in range(30):
        tells.batch(2, done, 50.0)
    assert said == []  # the epochs' lines have said it


def test_the_time_is_up_and_the_training_goes_on_later(frame_setup: FoldSetup) -> None:
    trainer = make_trainer(frame_setup, stop_at=time.time())
    with pytest.raises(Terminated):
        trainer.run_training()
    assert "the time of --stop_after is up after 1 of 3 batches of epoch 0; saved, --c goes on" in log_of(trainer)
    make_trainer(frame_setup, resume=True).run_training()
    assert [entry["epoch"] for entry in read_metrics(frame_setup.folder)] == [0, 1, 2]


def test_a_file_named_stop_ends_a_training(frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echoplan.training.pace._LOOK_SECONDS", 0.0)
    file = frame_setup.folder / "stop"
    file.parent.mkdir(parents=True)
    file.write_text("")  # of a training before
    trainer = make_trainer(frame_setup)
    step = trainer.train_step

    def then_asked(batch):
        if (trainer.epoch, trainer.progress.batches) == (1, 1):
            file.write_text("")
        return step(batch)

    trainer.train_step = then_asked  # type: ignore[method-assign]
    with pytest.raises(Terminated):
        trainer.run_training()
    assert f"the file {file} asks for it after 2 of 3 batches of epoch 1; saved" in log_of(trainer)
    assert not file.exists()


def test_a_plateau_ends_a_training_that_has_patience(frame_setup: FoldSetup) -> None:
    trainer = make_trainer(frame_setup, epochs=9, patience=2, keep_epoch="best_dice")
    dices = iter([0.5, 0.7, 0.6, 0.7])
    trainer.validate_epoch = lambda: next(dices)  # type: ignore[method-assign]
    trainer.run_training()
    assert "no better validation for 2 epochs (patience 2): the training ends here" in log_of(trainer)
    assert "trained 4 epochs; highest validation Dice 0.7000; the final weights are epoch 1's" in log_of(trainer)
    latest = load_checkpoint(frame_setup.folder / "checkpoint_latest.pth")
    assert (latest["epochs"], next(dices, "all")) == (4, "all")
    # Killed before its final checkpoint was there, it trains no further epoch.
    (frame_setup.folder / "checkpoint_final.pth").unlink()
    again = make_trainer(frame_setup, epochs=9, patience=2, keep_epoch="best_dice", resume=True)
    again.run_training()
    assert load_checkpoint(frame_setup.folder / "checkpoint_final.pth")["epochs"] == 2
    assert len(read_metrics(frame_setup.folder)) == 4


def test_epochs_since_the_best_one():
    dices = [{"val_dice": dice, "val_dice_smooth": 0.1 * place, "val_loss": None} for place, dice in
             enumerate([0.5, 0.8, None, 0.8, 0.7])]  # fmt: skip
    assert epochs_since_best(dices, "best_dice") == 3
    assert epochs_since_best(dices, "last") == 0
    assert epochs_since_best(dices, "lowest_loss") == 0  # nothing can be judged, and so nothing is given up
    assert epochs_since_best([], "last") == 0
    assert epochs_since_best([{"val_loss": 0.2}, {"val_loss": 0.1}, {"val_loss": 0.3}], "lowest_loss") == 1


@pytest.mark.parametrize("epochs", [1, 40])
def test_legends_of_the_picture_cover_nothing(epochs):
    history = [
        {"epoch": place, "train_loss": 1 / (place + 1), "val_dice": None if place == 3 else 1.0, "seconds": 9.0,
         "val_dice_smooth": 0.99, "learning_rate": 0.01, "data_seconds": 0.5}
        for place in range(epochs)
    ]  # fmt: skip
    figure = progress_figure(history, title="a fold")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    panels = figure.get_axes()
    assert len(panels) == 4 and all(axes.get_ylabel() and axes.get_title(loc="left") for axes in panels)
    legends = [axes.get_legend() for axes in panels if axes.get_legend()]
    assert len(legends) == 2
    for legend in legends:
        extent = legend.get_window_extent(canvas.get_renderer())
        assert not any(extent.overlaps(axes.get_window_extent()) for axes in panels)
        assert not any(extent.overlaps(axes._left_title.get_window_extent()) for axes in panels)


def test_several_folds_end_with_their_mean_and_sd():
    assert over_folds([0.90, 0.92, 0.94]) == "validation Dice 0.9200 ± 0.0200 (mean ± SD of 3 folds)"


def test_an_engine_knows_no_hour_to_stop(capsys):
    with pytest.raises(SystemExit):
        scripts.train(["A", "0", "--engine", "ray", "--stop_after", "2"])
    assert "--stop_after is for trainings of this process" in capsys.readouterr().err
