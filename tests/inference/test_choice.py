"""Which model predicts when the user says little."""

from __future__ import annotations

import json

import pytest

from echoplan.errors import EchoPlanError
from echoplan.inference.model_selection import choose_models, trained_models
from echoplan.models import shipped_model
from echoplan.paths import Folders


def test_a_trainer_named_where_nothing_is_trained_says_what_to_type(folders):
    with pytest.raises(EchoPlanError, match="echoplan_train") as error:
        choose_models(folders, trainer="UNetTrainer")
    assert "nothing is trained" in str(error.value)


def test_a_training_that_is_not_finished_does_not_count(folders, make_model, tmp_path):
    model = make_model(folders.results, folds=())
    assert trained_models(model.parent) == ()
    assert choose_models(Folders(tmp_path, tmp_path, tmp_path / "nothing")).members[0][0] == shipped_model()
    with pytest.raises(EchoPlanError, match="nothing is trained to its end"):
        choose_models(folders)
    with pytest.raises(EchoPlanError, match="echoplan_train Phantom 0"):
        choose_models(folders, dataset="Phantom")


def test_the_only_model_is_taken(folders, make_model):
    model = make_model(folders.results)
    assert choose_models(folders).members == ((model, None),)
    assert choose_models(folders, dataset="1", folds=[1]).members == ((model, (1,)),)


def test_several_models_are_listed_with_their_command_lines(folders, make_model):
    make_model(folders.results)
    dim = make_model(folders.results, trainer="DimTrainer", folds=(3,))
    with pytest.raises(EchoPlanError) as error:
        choose_models(folders)
    text = str(error.value)
    assert "echoplan_predict -i IN -o OUT -d Phantom -tr BrightTrainer -p EchoPlans -c frame   (folds 0, 1)" in text
    assert "-tr DimTrainer -p EchoPlans -c frame   (folds 3)" in text
    assert "echoplan_find_best_configuration Phantom" in text
    assert choose_models(folders, trainer="DimTrainer").members == ((dim, None),)
    assert choose_models(folders, trainer="some/file.py:DimTrainer").members == ((dim, None),)
    with pytest.raises(EchoPlanError, match=r"fits -tr NoTrainer -c clip"):
        choose_models(folders, trainer="NoTrainer", configuration="clip")


def test_several_datasets_are_listed(folders, make_model):
    make_model(folders.results)
    other = make_model(folders.results, dataset="Dataset002_Other")
    with pytest.raises(EchoPlanError, match=r"-d Phantom\n.*-d Other"):
        choose_models(folders)
    assert choose_models(folders, dataset="Other").members == ((other, None),)


def test_a_model_folder_needs_nothing_else(folders, make_model, tmp_path):
    model = make_model(tmp_path / "elsewhere")
    assert choose_models(folders, model_folders=[model], folds=(0,)).members == ((model, (0,)),)


def test_several_model_folders_are_an_ensemble(folders, make_model):
    models = [make_model(folders.results), make_model(folders.results, trainer="DimTrainer")]
    assert choose_models(folders, model_folders=models).members == ((models[0], None), (models[1], None))


def test_the_best_configuration_wins_unless_a_model_is_named(folders, make_model):
    bright, dim = make_model(folders.results), make_model(folders.results, trainer="DimTrainer")
    best = {
        "name": "both",
        "members": [{"model": bright.name, "folds": [0]}, {"model": dim.name, "folds": [0, 1]}],
        "postprocessing": {"steps": ["fill_holes"]},
    }
    file = bright.parent / "best_configuration.json"
    file.write_text(json.dumps(best))
    choice = choose_models(folders)
    assert choice.members == ((bright, (0,)), (dim, (0, 1))) and choice.postprocessing == ({"name": "fill_holes"},)
    assert choose_models(folders, trainer="DimTrainer").members == ((dim, None),)
    file.write_text("{}")
    with pytest.raises(EchoPlanError, match="best_configuration"):
        choose_models(folders)
