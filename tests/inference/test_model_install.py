"""Installing archives: what is refused, what an interruption leaves, whose place a model may take."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from echoplan import scripts
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.inference import choose_models
from echoplan.inference.archive import export_model, install_model
from echoplan.paths import Folders
from echoplan.training.checkpoint import load_checkpoint, pack_checkpoint, save_checkpoint

BRIGHT, UNET = "BrightTrainer__EchoPlans__frame", "UNetTrainer__EchoPlans__frame"
HOME, WEIGHTS = "Dataset001_Phantom", f"{UNET}/fold_0/checkpoint_final.pth"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the archive lies that all tests take."""
    return tmp_path_factory.mktemp("made") / "model.zip"


@pytest.fixture
def archive(tmp_path, folders, made, unet):
    """A model of one of the project's own trainers, as a file."""
    if not made.exists():
        write_json(unet() / "postprocessing.json", {"steps": ["largest_component"]})
        export_model(choose_models(folders), made, dataset=HOME)
        shutil.rmtree(folders.results)
    return shutil.copy(made, tmp_path / "model.zip")


@pytest.fixture
def code_archive(tmp_path, folders, make_model):
    """A model that brings the code of its trainer, which says so whenever it runs."""
    make_model(folders.results)
    source = tmp_path / "trainers.py"
    ran = tmp_path / "ran"
    source.write_text(f"open({str(ran)!r}, 'a').write('x')\n{source.read_text()}")
    export_model(choose_models(folders), tmp_path / "code.zip", dataset=HOME)
    ran.unlink()
    return tmp_path / "code.zip"


@pytest.fixture
def there(tmp_path):
    """The folders of another machine."""
    root = tmp_path / "elsewhere"
    return Folders(root / "raw", root / "preprocessed", root / "results")


class Forged:
    """An archive's entries, to be changed; what `content` holds also goes into the manifest, as it should be."""

    def __init__(self, file):
        with zipfile.ZipFile(file) as opened:
            self.content = {name: opened.read(name) for name in opened.namelist()}
        self.manifest = json.loads(self.content.pop("manifest.json"))
        self.kind, self.added, self.hidden = {}, [], set()
        self.compression = zipfile.ZIP_STORED

    def write(self, file):
        listed = {name: data for name, data in self.content.items() if name not in self.hidden}
        self.manifest["files"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in listed.items()
        } | self.manifest.get("more", {})  # fmt: skip
        with zipfile.ZipFile(file, "w", self.compression) as made:
            for name, data in [*self.content.items(), *self.added, ("manifest.json", json.dumps(self.manifest))]:
                entry = zipfile.ZipInfo(name)
                entry.filename = name
                entry.compress_type = self.compression
                entry.external_attr = self.kind.get(name, stat.S_IFREG | 0o644) << 16
                made.writestr(entry, data)
        return file


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_behind(there):
    """Everything below the root, hidden things included."""
    return sorted(there.results.parent.rglob("*")) if there.results.parent.exists() else []


# What is refused ----------------------------------------------------------------------------------------------------


def named(name):
    def change(forged):
        forged.added.append((name, b"x"))

    return change


def listed(name):
    """A file that the manifest names too, with its size and hash."""

    def change(forged):
        forged.content[name] = b"x"

    return change


def kind(mode):
    def change(forged):
        forged.kind[f"{UNET}/plans.json"] = mode

    return change


def set_in_manifest(*path, value):
    def change(forged):
        place = forged.manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def claim(**more):
    """Change what the manifest says of one file."""

    def change(forged):
        data = forged.content[WEIGHTS]
        true = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        forged.manifest["more"] = {WEIGHTS: true | more}

    return change


def unlisted(forged):
    forged.content["notes.txt"] = b"x"
    forged.hidden.add("notes.txt")


def stray(forged):
    forged.content["notes.txt"] = b"x"


def missing(forged):
    data = forged.content.pop(f"{UNET}/postprocessing.json")
    forged.manifest["more"] = {f"{UNET}/postprocessing.json": {"bytes": len(data), "sha256": "0" * 64}}


def without_checkpoint(forged):
    del forged.content[WEIGHTS]


def hidden_code(forged):
    forged.content[f"{UNET}/conftest.py"] = b"x"


def bomb(forged):
    forged.compression = zipfile.ZIP_DEFLATED
    forged.content[f"{UNET}/dataset_fingerprint.json"] = b" " * 30_000_000 + b"{}"


def twice(forged):
    forged.added.append((f"{UNET}/Plans.json", b"x"))


def unusual(forged):
    forged.compression = zipfile.ZIP_LZMA


REFUSED = {
    "absolute path": (named("/etc/passwd"), "not in its manifest"),
    "drive letter": (named("C:x.json"), "not in its manifest"),
    "drive and backslash": (named("C:\\x.json"), "not in its manifest"),
    "UNC": (named("\\\\host\\x"), "not in its manifest"),
    "parent": (named("../x"), "not in its manifest"),
    "parent within": (named(f"{UNET}/../../x"), "not in its manifest"),
    "parent by backslash": (named("a\\..\\..\\x"), "not in its manifest"),
    "backslash": (named("a\\x"), "not in its manifest"),
    "control character": (named("a\x1b[2Jx"), "not in its manifest"),
    "empty part": (named("a//x"), "not in its manifest"),
    "folder": (named("a/"), "not in its manifest"),
    "absolute path in the manifest": (listed("/etc/passwd"), "is no file of a model"),
    "drive letter in the manifest": (listed("C:x.json"), "is no file of a model"),
    "parent in the manifest": (listed("../x"), "is no file of a model"),
    "parent within, in the manifest": (listed(f"{UNET}/../../x"), "is no file of a model"),
    "backslash in the manifest": (listed(f"{UNET}\\plans.json"), "is no file of a model"),
    "control character in the manifest": (listed("a\x1b[2Jx"), "is no file of a model"),
    "folder in the manifest": (listed(f"{UNET}/"), "is no file of a model"),
    "symlink": (kind(stat.S_IFLNK | 0o777), "no plain file"),
    "device": (kind(stat.S_IFCHR | 0o666), "no plain file"),
    "pipe": (kind(stat.S_IFIFO | 0o666), "no plain file"),
    "twice, by another case": (twice, "not in its manifest"),
    "twice, by another case, in the manifest": (listed(f"{UNET}/Plans.json"), "is no file of a model"),
    "not in the manifest": (unlisted, "not in its manifest"),
    "not of a model": (stray, "is no file of a model"),
    "code that is not named": (hidden_code, "not those that its files make"),
    "not in the archive": (missing, "not in the archive"),
    "no checkpoint": (without_checkpoint, "not those that its files make"),
    "another hash": (claim(sha256="0" * 64), "SHA-256 differs"),
    "another size": (claim(bytes=5), "size or SHA-256 differs"),
    "no hash": (claim(sha256="x"), "SHA-256 differs"),
    "negative size": (claim(bytes=-1), "size or SHA-256 differs"),
    "zip bomb": (bomb, "would unpack"),
    "unusual packing": (unusual, "unusual way"),
    "another format": (set_in_manifest("format", value=2), "format 2"),
    "dataset that leads out": (set_in_manifest("dataset", "folder", value="../Dataset001_X"), "manifest is not as"),
    "no dataset": (set_in_manifest("dataset", "folder", value="Phantom"), "is no dataset's folder"),
    "dataset of an odd name": (set_in_manifest("dataset", "folder", value="Dataset001_X."), "cannot be a file's name"),
    "model that leads out": (set_in_manifest("models", 0, "folder", value="../UNetTrainer__x__y"), "cannot be a file"),
    "no model": (set_in_manifest("models", value=[]), "names no model"),
    "odd manifest": (set_in_manifest("models", value=7), "the manifest is not as it should be"),
    "fold that is missing": (set_in_manifest("models", 0, "folds", value=[0, 1, 2]), "not those that its files"),
    "fold that is none": (set_in_manifest("models", 0, "folds", value=["../0"]), "not those that its files"),
    "code elsewhere": (set_in_manifest("models", 0, "code", value=["../x.py"]), "not those that its files"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_archive_that_is_not_as_it_should_be_is_refused(what, tmp_path, archive, there):
    change, words = REFUSED[what]
    forged = Forged(archive)
    change(forged)
    with pytest.raises(EchoPlanError) as error:
        install_model(forged.write(tmp_path / "forged.zip"), there, trust_code=True)
    assert words in error.value.problem and error.value.file == str(tmp_path / "forged.zip") and error.value.remedy
    assert error.value.problem.isprintable()
    assert [path for path in left_behind(there) if path != there.results] == []


def test_what_was_changed_as_it_should_be_is_installed(tmp_path, archive, there):
    """The refusals above are not those of the forger's tools; archives may be packed anew, and by Windows."""
    forged = Forged(archive)
    forged.compression = zipfile.ZIP_DEFLATED
    forged.kind = dict.fromkeys(forged.content, 0)
    install_model(forged.write(tmp_path / "forged.zip"), there)
    assert tree(there.results / HOME) == {Path(name): data for name, data in forged.content.items()}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path, archive, there):
    shutil.copy(archive, tmp_path / "forged.zip")
    with zipfile.ZipFile(tmp_path / "forged.zip", "a") as file:
        file.writestr(WEIGHTS, b"another")
    with pytest.raises(EchoPlanError, match="is in the archive twice"):
        install_model(tmp_path / "forged.zip", there)


def test_files_that_are_no_archives_are_refused(tmp_path, archive, there):
    whole = archive.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    contents = {
        "text.zip": b"this is no zip file",
        "empty.zip": b"",
        "cut.zip": whole[:-500],
        "flip.zip": bytes(middle),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    for name in (*contents, "other.zip"):
        with pytest.raises(EchoPlanError) as error:
            install_model(tmp_path / name, there)
        assert error.value.remedy and error.value.file == str(tmp_path / name)
    assert [path for path in left_behind(there) if path != there.results] == []


def packed_zip(**content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return stream.getvalue()


def saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/echoplan_was_here",)


def state_with(data, **more):
    state = torch.load(io.BytesIO(data), weights_only=True)
    return bytes(pack_checkpoint({**state, **more}))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (WEIGHTS, lambda data: b"weights", "BadZipFile"),
        (WEIGHTS, lambda data: saved({"format": 1, "network": Evil()}), "no readable checkpoint"),
        (WEIGHTS, lambda data: saved({"format": 1}), "this checkpoint lacks"),
        (WEIGHTS, lambda data: saved([1, 2]), "another format"),
        (WEIGHTS, lambda data: packed_zip(x=b"0" * 2_000_000), "unpack to more than it is"),
        (WEIGHTS, lambda data: state_with(data, trainer_source="/tmp/x.py:UNetTrainer"), "not in the archive"),
        (WEIGHTS, lambda data: state_with(data, trainer_source="x.py:UNetTrainer"), "not in the archive"),
        (WEIGHTS, lambda data: state_with(data, settings=[1]), "'settings' is not what"),
        (WEIGHTS, lambda data: state_with(data, classes=10**9), "1000000000 classes, and the labels beside it make 1"),
        (WEIGHTS, lambda data: state_with(data, settings={"base_features": 10**9}), "must be from 1 to 1024"),
        (WEIGHTS, lambda data: state_with(data, settings={"max_features": 17}), "do not fit the network"),
        (WEIGHTS, lambda data: state_with(data, network={"a": torch.tensor([0, torch.nan])}), "NaN or infinite"),
        (f"{UNET}/plans.json", lambda data: b"{}", "this is not a plan"),
        (f"{UNET}/plans.json", lambda data: b"[" * 100_000, "plans.json"),
        (
            f"{UNET}/dataset.json",
            lambda data: b'{"name": "X", "labels": {"LV": 3}}',
            "dataset.json is not as it should",
        ),
        (f"{UNET}/postprocessing.json", lambda data: b'{"steps": ["run"]}', "no postprocessing step 'run'"),
        (f"{UNET}/crossval_results/calibration.json", lambda data: b"{}", "this is no calibration"),
        ("best_configuration.json", lambda data: b"[]", "best_configuration.json"),
        ("best_configuration.json", lambda data: best(model="../../x"), "names other models"),
        ("best_configuration.json", lambda data: best(folds=[7]), "names folds"),
        ("best_configuration.json", lambda data: best(calibration="../x.json"), "names a calibration"),
        ("best_configuration.json", lambda data: best(steps=["run"]), "no postprocessing step"),
    ],
)
def test_files_that_are_not_what_their_names_say_are_refused(name, content, words, tmp_path, archive, there):
    forged = Forged(archive)
    forged.content[name] = content(forged.content.get(name, b""))
    with pytest.raises(EchoPlanError) as error:
        install_model(forged.write(tmp_path / "forged.zip"), there)
    assert words in error.value.problem and name.rpartition("/")[2] in error.value.problem
    assert [path for path in left_behind(there) if path != there.results] == []
    assert not Path("/tmp/echoplan_was_here").exists()


def best(model=UNET, folds=(0, 1), calibration=None, steps=()):
    content = {
        "name": UNET, "members": [{"model": model, "folds": list(folds)}], "calibration": calibration,
        "postprocessing": {"steps": list(steps)},
    }  # fmt: skip
    return json.dumps(content).encode()


def test_a_full_disk_is_told_before_anything_is_unpacked(archive, there, monkeypatch):
    nearly_full = SimpleNamespace(free=1000)
    monkeypatch.setattr("echoplan.inference.archive.install.shutil.disk_usage", lambda path: nearly_full)
    with pytest.raises(EchoPlanError, match=r"0\.00 GB are free"):
        install_model(archive, there)
    assert left_behind(there) == [there.results]


# Code ---------------------------------------------------------------------------------------------------------------


def test_code_is_installed_only_by_who_trusts_it_and_never_run(tmp_path, at, code_archive, clips, capsys):
    there = at(tmp_path / "elsewhere")
    (tmp_path / "trainers.py").write_text("raise RuntimeError('the file of the other machine')")
    assert scripts.install_model([str(code_archive)]) == 1
    said = capsys.readouterr().err
    assert f"{BRIGHT}/trainers.py" in said and "--trust_code" in said and "runs whenever the model is used" in said
    assert left_behind(there) == []
    assert scripts.install_model([str(code_archive), "--trust_code"]) == 0
    assert not (tmp_path / "ran").exists()
    arguments = ["-i", str(clips / "p1_A4C.nii.gz"), "-o", str(tmp_path / "out"), "--device", "cpu", "-np", "0"]
    assert scripts.predict(arguments) == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("package", "remedy"), [("echoplan", "update EchoPlan"), ("qz_trainers", "install the package qz_trainers")]
)
def test_a_trainer_that_is_not_here_is_told(package, remedy, tmp_path, archive, there, caplog):
    forged = Forged(archive)
    renamed = {name.replace("UNetTrainer", "NewTrainer"): data for name, data in forged.content.items()}
    forged.content = {
        name: state_with(data, trainer_source="NewTrainer") if name.endswith(".pth") else data
        for name, data in renamed.items()
    }
    model = {"folder": "NewTrainer__EchoPlans__frame", "trainer": "NewTrainer", "package": package}
    forged.manifest["models"][0] |= model
    install_model(forged.write(tmp_path / "forged.zip"), there)
    assert {f"the trainer NewTrainer is not here: before you predict, {remedy}"} == set(caplog.messages)


# Whose place it takes -----------------------------------------------------------------------------------------------


def test_a_model_that_is_there_is_overwritten_only_when_asked_to(
    tmp_path, at, archive, unet, make_model, capsys, caplog
):
    there = at(tmp_path / "elsewhere")
    mine = make_model(there.results)
    unet(there.results, folds=(0, 1))
    save_checkpoint(there.results / HOME / UNET / "fold_0" / "checkpoint_latest.pth", {})
    best_file = there.results / HOME / "best_configuration.json"
    best_file.write_bytes(best())
    before = tree(there.results)
    assert scripts.install_model([str(archive)]) == 1
    said = capsys.readouterr().err
    assert f"{UNET} is there already" in said
    assert "-d Phantom_2" in said and "--overwrite" in said and tree(there.results) == before
    assert scripts.install_model([str(archive), "--overwrite"]) == 0
    assert f"replaced: {UNET}" in capsys.readouterr().out
    assert "echoplan_find_best_configuration Phantom again" in caplog.text
    assert tree(mine) == {
        path.relative_to(mine.relative_to(there.results)): data for path, data in before.items() if BRIGHT in path.parts
    }
    assert not (there.results / HOME / UNET / "fold_0" / "checkpoint_latest.pth").exists()
    assert read_json(there.results / HOME / UNET / "postprocessing.json")["steps"] == [{"name": "largest_component"}]
    assert {path.name for path in (there.results / HOME).iterdir()} == {BRIGHT, UNET, best_file.name}
    assert scripts.install_model([str(archive), "-d", "Phantom_2"]) == 0
    said = capsys.readouterr().out
    assert (
        "installed in" in said and "Dataset002_Phantom_2" in said and "-d Dataset002_Phantom_2 -tr UNetTrainer" in said
    )


def test_beside_other_models_the_command_names_the_model(tmp_path, at, archive, make_model, capsys):
    there = at(tmp_path / "elsewhere")
    make_model(there.results)
    assert scripts.install_model([str(archive)]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"echoplan_predict -i IN -o OUT -d {HOME} -tr UNetTrainer -p EchoPlans -c frame\n")


def test_the_same_id_of_another_dataset_is_left_to_it(tmp_path, at, archive, capsys):
    there = at(tmp_path / "elsewhere")
    (there.raw / "Dataset001_Mine").mkdir(parents=True)
    (there.preprocessed / "Dataset004_Other").mkdir(parents=True)
    assert scripts.install_model([str(archive)]) == 0
    assert f"installed in {there.results / 'Dataset005_Phantom'}:" in capsys.readouterr().out
    assert choose_models(there, dataset="Phantom").members[0][0] == there.results / "Dataset005_Phantom" / UNET


def test_the_same_dataset_under_another_id_takes_the_model(tmp_path, archive, there):
    (there.raw / "Dataset007_Phantom").mkdir(parents=True)
    assert install_model(archive, there).home.name == "Dataset007_Phantom"


def test_of_two_datasets_of_one_name_the_one_of_the_same_id_or_none_is_meant(tmp_path, archive, there):
    for name in ("Dataset007_Phantom", "Dataset008_Phantom"):
        (there.raw / name).mkdir(parents=True)
    with pytest.raises(EchoPlanError, match="Dataset007_Phantom, Dataset008_Phantom"):
        install_model(archive, there)
    assert install_model(archive, there, name="Dataset008_Phantom").home.name == "Dataset008_Phantom"
    (there.preprocessed / HOME).mkdir(parents=True)
    installed = install_model(archive, there)
    assert installed.home.name == HOME and f"-d {HOME} " in installed.command
    for name in ("../Phantom", "Dataset001_../x", "17", "a b"):
        with pytest.raises(EchoPlanError, match="cannot name a dataset"):
            install_model(archive, there, name=name)


def test_a_joint_keeps_its_name(tmp_path, folders, unet, there):
    model = unet(dataset="CAMUS+EchoNet")
    export_model(choose_models(folders, model_folders=[model]), tmp_path / "a.zip", dataset="CAMUS+EchoNet")
    installed = install_model(tmp_path / "a.zip", there)
    assert installed.home == there.results / "CAMUS+EchoNet" and "-d CAMUS+EchoNet " in installed.command
    assert install_model(tmp_path / "a.zip", there, name="Both").home.name == "Dataset001_Both"


def test_a_file_in_the_folders_place_is_not_lost(archive, there):
    there.results.mkdir(parents=True)
    (there.results / HOME).write_text("precious")
    with pytest.raises(EchoPlanError, match="here the model's folder should be"):
        install_model(archive, there, overwrite=True)
    assert (there.results / HOME).read_text() == "precious"


def test_an_installed_checkpoint_names_no_place_of_the_other_machine(code_archive, there, tmp_path):
    home = install_model(code_archive, there, trust_code=True).home
    state = load_checkpoint(home / BRIGHT / "fold_0" / "checkpoint_final.pth")
    assert state["trainer_source"] == "trainers.py:BrightTrainer"
    assert not re.search(re.escape(str(tmp_path)).encode(), (home / BRIGHT / "plans.json").read_bytes())
