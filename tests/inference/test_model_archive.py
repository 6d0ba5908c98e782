"""Models that travel: what goes into the archive, what does not, and that they predict elsewhere as at home."""

from __future__ import annotations

import csv
import io
import json
import shutil
import stat
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from echoplan import scripts
from echoplan.errors import EchoPlanError
from echoplan.files import plain, read_json, write_json
from echoplan.inference import choose_models, find_best_configuration
from echoplan.inference.archive import Manifest, export_model, install_model
from echoplan.paths import Folders
from echoplan.training.checkpoint import load_checkpoint, save_checkpoint
from echoplan.training.initialization import is_checkpoint

BRIGHT, DIM, UNET = (f"{name}__EchoPlans__frame" for name in ("BrightTrainer", "DimTrainer", "UNetTrainer"))
BOTH = f"{BRIGHT}___{DIM}"
HOME = "Dataset001_Phantom"


def predicted(clips, out, *more, status=0):
    """The masks and tables of a prediction, by name."""
    assert scripts.predict(["-i", str(clips), "-o", str(out), "--device", "cpu", "-np", "0", *more]) == status
    kept = [*out.glob("*.nii.gz"), out / "ef_report.csv", *out.glob("evidence/*.npz")]
    return {path.name: path.read_bytes() for path in kept}


def exported(choice, out, dataset=HOME, **more):
    return export_model(choice, out, dataset=dataset, **more)


def entries(archive):
    with zipfile.ZipFile(archive) as content:
        return {name: content.read(name) for name in content.namelist()}


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def clip(clips):
    """One of the clips."""
    return clips / "p1_A4C.nii.gz"


# There and back -----------------------------------------------------------------------------------------------------


def upper_half_missing(case, values):
    values[:, :, :32] *= 0.4
    values[:, :, 10:14, 4:10] = 1
    return values


def lower_half_missing(case, values):
    values[:, :, 32:] *= 0.4
    values[:, :, 10:14, 4:10] = 1
    return values


def test_the_best_ensemble_predicts_elsewhere_as_at_home(
    tmp_path, at, folders, make_crossval, make_model, clips, capsys
):
    for trainer, spoil in (("BrightTrainer", upper_half_missing), ("DimTrainer", lower_half_missing)):
        make_crossval(trainer, spoil=spoil)
    make_model(folders.results, trainer="DimTrainer", thresholds=(0.2, 0.7))
    best = find_best_configuration(folders, "Phantom")
    assert best.best.name == BOTH and best.postprocessing["steps"]
    at_home = predicted(clips, tmp_path / "home", "--coverage", "0.8", status=1)
    rows = csv.DictReader(at_home["ef_report.csv"].decode().splitlines())
    assert any(row["ef_low_percent"] for row in rows)
    archive = tmp_path / "model.zip"
    assert scripts.export_model(["Phantom", "-o", str(archive)]) == 0
    said = capsys.readouterr().out
    assert f"{BRIGHT}, folds 0, 1" in said and "echoplan_install_model model.zip --trust_code" in said
    assert set(entries(archive)) == {
        f"{model}/{name}" for model in (BRIGHT, DIM) for name in (
            "plans.json", "dataset.json", "crossval_results/calibration.json", "trainers.py",
            "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth",
        )
    } | {"best_configuration.json", f"ensembles/{BOTH}/crossval_results/calibration.json", "manifest.json"}  # fmt: skip
    (tmp_path / "trainers.py").unlink()  # what the installed model needs it brings along
    there = at(tmp_path / "elsewhere")
    assert scripts.install_model([str(archive), "--trust_code"]) == 0
    assert capsys.readouterr().out.endswith(f"predict with it: echoplan_predict -i IN -o OUT -d {HOME}\n")
    assert predicted(clips, tmp_path / "out", "--coverage", "0.8", "-d", "Phantom", status=1) == at_home
    again = tmp_path / "again.zip"
    assert scripts.export_model(["-o", str(again)]) == 0
    assert again.read_bytes() == archive.read_bytes()
    # One of the two, too, predicts with what is its own.
    assert choose_models(there, dataset="1", trainer="DimTrainer").members[0][0] == there.results / HOME / DIM


def test_a_single_model_with_some_folds_and_its_postprocessing(tmp_path, at, folders, unet, clip, capsys):
    model = unet(folds=(0, 1, 2), thresholds=(0, 0, 0))
    write_json(model / "postprocessing.json", {"steps": ["fill_holes"], "evidence": {"cases": 6}})
    at_home = predicted(clip, tmp_path / "home", "-f", "2", "0")
    arguments = ["Phantom", "-tr", "UNetTrainer", "-p", "EchoPlans", "-c", "frame", "-f", "0", "2"]
    assert scripts.export_model([*arguments, "-o", str(tmp_path / "a.zip")]) == 0
    assert "install it elsewhere: echoplan_install_model a.zip\n" in capsys.readouterr().out
    at(tmp_path / "elsewhere")
    assert scripts.install_model([str(tmp_path / "a.zip")]) == 0
    installed = tmp_path / "elsewhere" / "results" / HOME / UNET
    assert [path.name for path in sorted(installed.glob("fold_*"))] == ["fold_0", "fold_2"]
    assert read_json(installed / "postprocessing.json") == {"steps": [{"name": "fill_holes"}]}
    assert predicted(clip, tmp_path / "out") == at_home


def test_the_best_checkpoints_predict_like_the_final_ones(tmp_path, at, folders, make_crossval, clip):
    make_crossval()
    find_best_configuration(folders, "Phantom")
    for file in (folders.results / HOME / BRIGHT).glob("fold_*/checkpoint_final.pth"):
        state = load_checkpoint(file)
        save_checkpoint(file.with_name("checkpoint_best.pth"), {**state, "network": {"threshold": torch.tensor(0.2)}})
    at_home = predicted(clip, tmp_path / "home", "-chk", "best")
    assert at_home != predicted(clip, tmp_path / "final")
    assert scripts.export_model(["-o", str(tmp_path / "a.zip"), "--checkpoint", "best"]) == 0
    assert not [name for name in entries(tmp_path / "a.zip") if "calibration" in name]  # it is the final ones'
    there = at(tmp_path / "elsewhere")
    install_model(tmp_path / "a.zip", there, trust_code=True)
    assert predicted(clip, tmp_path / "out") == at_home


def test_half_precision_keeps_the_choice_its_calibration_and_the_masks(
    tmp_path, at, folders, make_crossval, make_model, clips, caplog
):
    for trainer, spoil in (("BrightTrainer", upper_half_missing), ("DimTrainer", lower_half_missing)):
        make_crossval(trainer, spoil=spoil)
    make_model(folders.results, trainer="DimTrainer", thresholds=(0.2, 0.7))
    find_best_configuration(folders, "Phantom")
    at_home = predicted(clips, tmp_path / "home", "--coverage", "0.8", status=1)
    assert scripts.export_model(["Phantom", "-o", str(tmp_path / "a.zip"), "--half_precision"]) == 0
    kept = torch.load(io.BytesIO(entries(tmp_path / "a.zip")[f"{DIM}/fold_0/checkpoint_final.pth"]), weights_only=True)
    assert kept["network"]["threshold"].dtype == torch.float16
    at(tmp_path / "elsewhere")
    assert scripts.install_model([str(tmp_path / "a.zip"), "--trust_code"]) == 0
    caplog.clear()
    there = predicted(clips, tmp_path / "out", "--coverage", "0.8", status=1)
    assert "other weights" not in caplog.text
    rows = csv.DictReader(there["ef_report.csv"].decode().splitlines())
    assert any(row["ef_low_percent"] for row in rows)
    assert all(there[name] == at_home[name] for name in at_home if name.endswith(".nii.gz"))


def test_half_precision_halves_the_file(tmp_path, folders, unet):
    unet(folds=(0,), thresholds=(0,))
    for name, half in (("whole.zip", False), ("half.zip", True)):
        exported(choose_models(folders), tmp_path / name, half_precision=half)
    whole, half = ((tmp_path / name).stat().st_size for name in ("whole.zip", "half.zip"))
    assert half < 0.75 * whole


def test_weights_too_large_for_half_precision_are_refused(tmp_path, folders, unet):
    file = unet(folds=(0,), thresholds=(0,)) / "fold_0" / "checkpoint_final.pth"
    state = load_checkpoint(file)
    save_checkpoint(file, {**state, "network": {name: 1e7 * weights for name, weights in state["network"].items()}})
    with pytest.raises(EchoPlanError, match="too large for 16 bits"):
        exported(choose_models(folders), tmp_path / "a.zip", half_precision=True)
    assert not (tmp_path / "a.zip").exists()


def test_models_anywhere_are_exported_as_an_ensemble(tmp_path, at, folders, make_model, clip, capsys):
    models = [
        make_model(tmp_path / "usb", trainer=name, thresholds=(0.3, 0.6)) for name in ("BrightTrainer", "DimTrainer")
    ]
    archive = str(tmp_path / "a.zip")
    assert scripts.export_model(["-m", *map(str, models), "-o", archive, "--trust_code"]) == 0
    at_home = predicted(clip, tmp_path / "home", "-m", *map(str, models), "--trust_code")
    at(tmp_path / "elsewhere")
    assert scripts.install_model([archive, "--trust_code"]) == 0
    capsys.readouterr()
    assert predicted(clip, tmp_path / "out") == at_home
    assert f"the ensemble that was exported, {BOTH}" in capsys.readouterr().out
    # The same by their trainers' names; and from where it is installed.
    assert scripts.export_model(["1", "-tr", "BrightTrainer", "DimTrainer", "-o", str(tmp_path / "b.zip")]) == 0
    assert scripts.export_model(["-o", str(tmp_path / "c.zip")]) == 0
    for name in ("b.zip", "c.zip"):
        assert (tmp_path / name).read_bytes() == Path(archive).read_bytes()


def test_a_foreign_folders_code_runs_only_if_trusted(tmp_path, at, folders, make_model, clip, capsys):
    model, own = str(make_model(tmp_path / "usb")), str(make_model(folders.results))
    ran = tmp_path / "ran"
    with open(tmp_path / "trainers.py", "a") as stream:
        stream.write(f"\nopen({str(ran)!r}, 'w').close()\n")
    predict = ["-i", str(clip), "-o", str(tmp_path / "out"), "--device", "cpu", "-np", "0", "--overwrite"]
    for command, words in ((scripts.predict, predict), (scripts.export_model, ["-o", str(tmp_path / "a.zip")])):
        assert command([*words, "-m", model]) == 1 and not ran.exists()
        said = capsys.readouterr().err
        assert "trainers.py, whose code would run" in said and "give --trust_code" in said
        for more in ([model, "--trust_code"], [own]):
            assert command([*words, "-m", *more]) == 0 and ran.exists()
            ran.unlink()


def test_models_of_other_datasets_need_a_name(tmp_path, at, make_model, capsys):
    one = make_model(tmp_path / "usb")
    other = make_model(tmp_path / "usb", dataset="Dataset002_Other", trainer="DimTrainer")
    arguments = ["-m", str(one), str(other), "-o", str(tmp_path / "a.zip")]
    assert scripts.export_model(arguments) == 1
    assert "trained on Dataset001_Phantom and Dataset002_Other" in capsys.readouterr().err
    assert scripts.export_model(["Other", *arguments, "--trust_code"]) == 0
    assert json.loads(entries(tmp_path / "a.zip")["manifest.json"])["dataset"]["folder"] == "Dataset002_Other"
    twin = make_model(tmp_path / "usb", dataset="Dataset002_Other")
    arguments = ["Other", "-m", str(one), str(twin), "-o", str(tmp_path / "b.zip"), "--trust_code"]
    assert scripts.export_model(arguments) == 1
    assert f"two models are called {BRIGHT}" in capsys.readouterr().err


# What is in it ------------------------------------------------------------------------------------------------------


def test_the_manifest_tells_what_is_in_the_archive(tmp_path, folders, unet, save_unet):
    model = unet()
    about = read_json(model / "dataset.json")
    write_json(model / "dataset.json", {**about, "licence": "CC BY-NC-SA 4.0", "reference": "Leclerc 2019"})
    archive = tmp_path / "a.zip"
    manifest = exported(choose_models(folders), archive)
    content = json.loads(entries(archive)["manifest.json"])
    assert content == plain(manifest.to_dict()) and manifest == Manifest.from_dict(content, source=archive)
    assert content["format"] == 1 and content["echoplan"]
    assert content["dataset"] == {
        "folder": HOME, "name": "Phantom", "licence": "CC BY-NC-SA 4.0", "reference": "Leclerc 2019"
    }  # fmt: skip
    assert content["models"] == [
        {"folder": UNET, "trainer": "UNetTrainer", "folds": [0, 1], "package": "echoplan", "code": []}
    ]
    with zipfile.ZipFile(archive) as opened:
        items = opened.infolist()
    names = [item.filename for item in items]
    assert sorted(names[:-1]) == sorted(content["files"]) and names[-1] == "manifest.json"
    assert {item.date_time for item in items} == {(1980, 1, 1, 0, 0, 0)}
    assert all(stat.S_ISREG(item.external_attr >> 16) for item in items)
    assert {item.filename: item.file_size for item in items[:-1]} == {
        name: file["bytes"] for name, file in content["files"].items()
    }


def test_a_trainer_that_a_package_offers_goes_by_its_name(tmp_path, folders, make_model, monkeypatch, caplog):
    model = make_model(folders.results, folds=(0,))
    file = model / "fold_0" / "checkpoint_final.pth"
    save_checkpoint(file, {**load_checkpoint(file), "trainer_source": "Brightest"})
    (tmp_path / "trainers.py").rename(tmp_path / "qz_trainers.py")
    monkeypatch.syspath_prepend(tmp_path)
    offered = [EntryPoint("Brightest", "qz_trainers:BrightTrainer", "echoplan.trainers")]
    with monkeypatch.context() as here:
        here.setattr("echoplan.training.methods.registry.entry_points", lambda group: offered)
        manifest = exported(choose_models(folders), tmp_path / "a.zip")
    assert list(manifest.packages.values()) == ["qz_trainers"] and not manifest.code
    caplog.clear()
    install_model(tmp_path / "a.zip", Folders(tmp_path / "r", tmp_path / "p", tmp_path / "elsewhere"))
    assert caplog.messages == ["the trainer Brightest is not here: before you predict, install the package qz_trainers"]


def test_the_same_model_gives_the_same_bytes_wherever_it_lies(tmp_path, folders, unet, save_unet):
    unet()
    copy = tmp_path / "copy" / "results"
    shutil.copytree(folders.results, copy)
    for file in copy.rglob("*"):
        file.touch()
    elsewhere = Folders(tmp_path / "copy" / "raw", tmp_path / "copy" / "preprocessed", copy)
    archives = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for where, archive in zip((folders, elsewhere), archives, strict=True):
        exported(choose_models(where), archive)
    before = archives[0].read_bytes()
    assert before == archives[1].read_bytes()
    exported(choose_models(folders), archives[0])  # an archive may be written anew
    assert before == archives[0].read_bytes()


def test_what_only_a_training_needs_stays_at_home(tmp_path, folders, unet, save_unet):
    model = unet(folds=(0,))
    moments = {"state": {0: {"exp_avg": torch.zeros(4096)}}, "param_groups": []}
    save_unet(model / "fold_0" / "checkpoint_final.pth", optimiser=moments, random=[{"cpu": torch.get_rng_state()}])
    save_unet(model / "fold_0" / "checkpoint_latest.pth", optimiser=moments)
    exported(choose_models(folders), tmp_path / "a.zip")
    (checkpoint,) = [name for name in entries(tmp_path / "a.zip") if name.endswith(".pth")]
    file = tmp_path / "checkpoint.pth"
    file.write_bytes(entries(tmp_path / "a.zip")[checkpoint])
    assert set(load_checkpoint(file)) == {
        "format", "version", "trainer", "trainer_source", "settings", "size", "classes", "epochs", "seed", "dataset",
        "started_from", "network", "plan",
    }  # fmt: skip
    before = load_checkpoint(model / "fold_0" / "checkpoint_final.pth")["network"]
    after = load_checkpoint(file)["network"]
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert is_checkpoint(file)  # a training may start from it: --weights


def unpacked(content):
    """A file's bytes, and those of what is packed in it."""
    yield content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for item in archive.infolist():
                yield item.filename.encode()
                yield from unpacked(archive.read(item))


def plant(model, save_unet, *, patient, case, place):
    """Names where trainings leave them, and where a hand may have added them."""
    names = {"cases": {case: {"patient": patient, "frames": 9}}, "failed_cases": {f"{case}_b": f"{place} is broken"}}
    write_json(model / "dataset_fingerprint.json", {"dataset": HOME, "summary": {"counts": {"cases": 1}}, **names})
    for fold in (0, 1):
        write_json(model / f"fold_{fold}" / "debug.json", {"train": [case], "val": [f"{case}_c"], "device": place})
        (model / f"fold_{fold}" / "validation").mkdir()
        (model / f"fold_{fold}" / "validation" / f"{case}.nii.gz").write_bytes(b"")
        (model / f"fold_{fold}" / "training_log_1.txt").write_text(f"{case} {place}")
        start = {"kind": "checkpoint", "file": place, "trainer": "UNetTrainer", "epochs": 3, "told": patient}
        basis = {"train": [case], "val": [f"{case}_c"]}
        more = {"progress": {"cases": [case]}, "basis": basis, "started_from": start}
        save_unet(model / f"fold_{fold}" / "checkpoint_final.pth", seed=fold, **more)
    for name in ("plans.json", "dataset.json"):
        content = read_json(model / name)
        write_json(model / name, {**content, "notes": f"{patient} {place}"})
    plan = read_json(model / "plans.json")
    write_json(model / "plans.json", {**plan, "hardware": {"gpu": {"value": place, "rule": "found"}}})
    write_json(model / "postprocessing.json", {"steps": [], "evidence": {"worst": case}})
    write_json(model / "crossval_results" / "summary.json", {"per_frame": [{"case": case}]})
    (model / f"{case}.py").write_text(patient)
    best = {"members": [{"model": model.name, "folds": [0, 1]}], "postprocessing": {"steps": []}, "name": model.name}
    left_out = {"left_out": {"X": case}, "scores": [{"name": model.name, "mean_dice": 0.9}, {"name": patient}]}
    write_json(model.parent / "best_configuration.json", {**best, **left_out, "found_by": patient})


def test_names_of_cases_patients_and_places_stay_at_home(tmp_path, folders, unet, save_unet, caplog):
    model = unet()
    planted = {"patient": "Qzwöllner_Xaviéra", "case": "qz4711_A4C", "place": "/home/qzanna/ward7"}
    plant(model, save_unet, **planted)
    exported(choose_models(folders), tmp_path / "a.zip")
    assert not [note for note in caplog.messages if "names cases" in note or "paths" in note]
    everything = b"\n".join(unpacked((tmp_path / "a.zip").read_bytes()))
    for word in (*planted.values(), "qzanna", "Qzwöllner", "qz4711", str(tmp_path)):
        for code in ("utf-8", "latin-1", "utf-16-le", "utf-32-le"):
            assert word.encode(code) not in everything, word
        assert json.dumps(word).strip('"').encode() not in everything, word
    told = json.loads(entries(tmp_path / "a.zip")[f"{UNET}/dataset_fingerprint.json"])
    assert told == {"dataset": HOME, "cases": {}, "summary": {"counts": {"cases": 1}}, "failed_cases": {}}
    best = json.loads(entries(tmp_path / "a.zip")["best_configuration.json"])
    assert best["scores"] == [{"name": UNET, "mean_dice": 0.9}] and best["calibration"] is None
    install_model(tmp_path / "a.zip", Folders(tmp_path / "r", tmp_path / "p", tmp_path / "elsewhere"))


def test_names_where_only_a_person_can_judge_are_told(tmp_path, folders, make_model, caplog):
    model = make_model(folders.results)
    write_json(model / "fold_0" / "debug.json", {"train": ["qz4711_A4C"], "val": []})
    write_json(model / "dataset.json", {**read_json(model / "dataset.json"), "reference": "with qz4711_A4C, see p. 3"})
    source = tmp_path / "trainers.py"
    source.write_text(source.read_text() + "\nHARD = ['qz4711_A4C', 'qz4711_A4C_b']\n")
    for file in model.glob("fold_*/checkpoint_final.pth"):
        state = load_checkpoint(file)
        save_checkpoint(file, {**state, "settings": {**state["settings"], "augmentation": "light"}})
    exported(choose_models(folders), tmp_path / "a.zip")
    named = [note.split(" names ")[0] for note in caplog.messages if "names cases or patients (qz4711_A4C)" in note]
    assert sorted(named) == [f"{BRIGHT}/dataset.json", f"{BRIGHT}/trainers.py", "manifest.json"]


def test_settings_that_look_like_paths_are_told(tmp_path, folders, make_model, caplog):
    model = make_model(folders.results, folds=(0,))
    source = tmp_path / "trainers.py"
    recipe = (
        "\nfrom dataclasses import dataclass\nfrom echoplan.training.recipe import Recipe\n\n"
        "@dataclass(frozen=True)\nclass Own(Recipe):\n    atlas: str = ''\n\nBrightTrainer.recipe_class = Own\n"
    )
    source.write_text(source.read_text() + recipe)
    state = load_checkpoint(model / "fold_0" / "checkpoint_final.pth")
    state["settings"]["atlas"] = "/data/atlas.npz"
    save_checkpoint(model / "fold_0" / "checkpoint_final.pth", state)
    exported(choose_models(folders), tmp_path / "a.zip")
    assert any(note.endswith("atlas=/data/atlas.npz") for note in caplog.messages)


# What is not exported -----------------------------------------------------------------------------------------------


def test_what_cannot_predict_is_not_exported(tmp_path, at, folders, unet, capsys):
    out = str(tmp_path / "a.zip")
    assert scripts.export_model(["Phantom", "-o", out]) == 1
    model = unet()
    for arguments in (["-tr", "DimTrainer"], ["-f", "3"], ["-c", "clip"]):
        assert scripts.export_model(["Phantom", "-o", out, *arguments]) == 1
    (model / "fold_1" / "checkpoint_best.pth").unlink()
    assert scripts.export_model(["Phantom", "-o", out, "--checkpoint", "best"]) == 1
    assert "checkpoint is missing" in capsys.readouterr().err
    assert not Path(out).exists() and not list(tmp_path.glob(".partial*"))


def test_no_other_file_is_overwritten(tmp_path, folders, unet, save_unet):
    unet()
    precious = tmp_path / "thesis.docx"
    with zipfile.ZipFile(precious, "w") as file:
        file.writestr("word/document.xml", "years of work")
    before = precious.read_bytes()
    with pytest.raises(EchoPlanError, match="no archive of a model"):
        exported(choose_models(folders), precious)
    with pytest.raises(EchoPlanError, match="this is a folder"):
        exported(choose_models(folders), tmp_path)
    assert precious.read_bytes() == before


def test_an_export_that_is_interrupted_leaves_the_earlier_archive(tmp_path, folders, unet, monkeypatch):
    unet()
    archive = tmp_path / "a.zip"
    exported(choose_models(folders), archive)
    before = tree(tmp_path)

    def stopped(content):
        raise KeyboardInterrupt

    monkeypatch.setattr("echoplan.inference.archive.export.pack_checkpoint", stopped)
    with pytest.raises(KeyboardInterrupt):
        exported(choose_models(folders), archive)
    assert tree(tmp_path) == before


def test_a_trainer_of_several_files_is_not_exported(tmp_path, folders, make_model, monkeypatch):
    make_model(folders.results)
    source = tmp_path / "trainers.py"
    (tmp_path / "my_layers.py").write_text("WIDTH = 3\n")
    source.write_text("import json, numpy, my_layers\n" + source.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EchoPlanError, match=r"imports my_layers.py, which lies beside it"):
        exported(choose_models(folders), tmp_path / "a.zip")
    source.unlink()
    with pytest.raises(EchoPlanError, match="the trainer's file is missing"):
        exported(choose_models(folders), tmp_path / "a.zip")
