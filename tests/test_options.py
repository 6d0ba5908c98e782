"""The commands' options: one spelling and one meaning each, help and examples that work, and no wait for them."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from echoplan import scripts
from echoplan.datasets import commands as datasets_commands
from echoplan.datasets.building import STRUCTURES
from echoplan.datasets.phantom.write import LABELS, LAYOUTS
from echoplan.evaluation.conformal import DEFAULT_COVERAGE
from echoplan.evaluation.ventricle.volumes import VOLUME_RULES
from echoplan.inference.deployment.exported import BACKENDS
from echoplan.inference.foundation.networks import FOUNDATION_MODELS
from echoplan.inference.stress.changes import CHANGES
from echoplan.inference.study.published import PAPERS
from echoplan.networks.sam.settings import BOXES
from echoplan.options import choices
from echoplan.training.methods import method_registry, offering_package
from echoplan.training.prompts import LABEL_KINDS

ROOT = Path(__file__).parents[1]
NAMES = [*scripts.COMMANDS]


def spelled(parser):
    """Every option of a parser that its help shows."""
    return [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]


def test_help_and_wrong_options_of_all_commands_wait_for_nothing():
    """One process for all: what answers at once has not imported what takes half a second."""
    slow = ("torch", "numpy", "pandas", "scipy", "SimpleITK", "tqdm", "matplotlib", "av", "pydicom", "ray")
    code = (
        "import contextlib, io, json, sys\n"
        "from echoplan import scripts\n"
        "codes = []\n"
        "for name in ['echoplan', *scripts.COMMANDS]:\n"
        "    for option in ('--help', '--version', '--no_such_option'):\n"
        "        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "            try: getattr(scripts, name)([option])\n"
        "            except SystemExit as ended: codes.append(ended.code)\n"
        f"print(json.dumps([codes, [name for name in {slow} if name in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    codes, imported = json.loads(done.stdout)
    assert codes == [0, 0, 2] * (len(NAMES) + 1) and imported == []


def test_one_meaning_and_one_spelling_for_each_option():
    """Where two commands have an option it goes into the same attribute, and has the same other spellings."""
    meanings, spellings = defaultdict(set), defaultdict(set)
    for name in NAMES:
        for action in spelled(scripts.parser_of(name)):
            spellings[action.dest].add(tuple(action.option_strings))
            for option in action.option_strings:
                # "trainer" of the commands that take one is "trainers" of those that take several
                meanings[option].add((action.dest.removesuffix("s"), tuple(action.option_strings)))
    assert {option: found for option, found in meanings.items() if len(found) > 1} == {}
    assert {dest: found for dest, found in spellings.items() if len(found) > 1} == {}
    assert len(meanings) > 80


# Command -> what scripts of the first versions' users hold.
EARLIER = {
    "predict": ["-i a -o b --continue_prediction -device cpu", "-i a -o b -m c -chk best"],
    "train": ["A 0 -pretrained_weights a", "A all --c -device cpu"],
    "zero_shot": ["A -m sam -weights a --continue_prediction --size 64"],
    "report": ["--clips a -m b -o c --method camus", "-i a -m b -o c"],
    "make_phantom": ["-d A --layout camus --out a --size 48 60 --labels ed_es"],
    "reproduce": ["e3sam2 -d A --weights E3SAM2Trainer=a --size 64x48 --frames 4"],
    "export_onnx": ["A -o a --frame_size 60 80"],
    "evaluate_folder": ["a b --labels LV=1 MYO=2"],
    "convert_dataset": ["folder a -d A --structures all --labels LV MYO"],
    "compare": ["--predictions a=a b=b --references c -d A"],
    "plan_and_preprocess": ["-d A B -tr UNetTrainer --size 64"],
    "study": ["A -tr UNetTrainer --folds 0 1"],
}  # fmt: skip


@pytest.fixture
def everything_exists(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "is_file", lambda self: True)


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_spellings_work(name, everything_exists):
    for line in EARLIER[name]:
        scripts.parser_of(name).parse_args(line.split())


def test_each_option_has_a_help_and_each_command_two_examples(everything_exists, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for name in NAMES:
        made = scripts.parser_of(name)
        assert [action.dest for action in made._actions if not action.help] == [], name
        shown = made.format_help()
        assert not re.search(r"default: (None|False|True|\[\]|\(\))", shown), name
        examples = re.findall(rf"^  (?:\w+=\S+ )?echoplan_{name}\b(.*)$", shown.split("examples:\n")[1], re.M)
        assert len(examples) >= 2, name
        for example in examples:
            scripts.parser_of(name).parse_args(shlex.split(example))  # or it exits
        for page in re.findall(r"\b(?:docs/)?\w+\.md\b", shown):
            assert (ROOT / page).is_file(), (name, page)


def test_the_dataset_is_named_alike_everywhere(everything_exists, capsys):
    for words in (["A", "0"], ["-d", "A", "0"], ["-d", "A", "-f", "0"], ["A", "-f", "0"], ["0", "-d", "A"],
                  ["-tr", "T", "-d", "A", "0"], ["A", "--epochs", "1", "0"]):  # fmt: skip
        chosen = scripts.parser_of("train").parse_args(words)
        assert (chosen.dataset, chosen.folds) == ("A", (0,)), words
    assert scripts.parser_of("train").parse_args(["-d", "A", "all"]).folds is None
    assert scripts.parser_of("train").parse_args(["A", "2", "0"]).folds == (0, 2)
    for words in (["A", "-d", "B", "0"], ["A"], ["0"], [], ["A", "0", "-f", "1"], ["A", "all", "1"], ["-d", "A", "x"]):
        with pytest.raises(SystemExit):
            scripts.parser_of("train").parse_args(words)
    for name, rest in (("study", "-tr T"), ("zero_shot", "-m sam"), ("export_model", "-o a"), ("make_phantom", "")):
        for words in ("A " + rest, rest + " -d A"):
            assert scripts.parser_of(name).parse_args(words.split()).dataset == "A"
    for words in (["A", "B"], ["-d", "A", "B"]):
        assert scripts.parser_of("preprocess").parse_args(words).dataset == ["A", "B"]
    with pytest.raises(SystemExit):
        scripts.parser_of("preprocess").parse_args([])
    assert "give DATASET, or -d DATASET" in capsys.readouterr().err


def test_the_choices_are_what_there_is():
    own = {name for name in method_registry() if offering_package(name) == "echoplan"}
    assert set(choices.TRAINERS) == own
    assert choices.BACKENDS == BACKENDS and choices.BOXES == BOXES and choices.COVERAGE == DEFAULT_COVERAGE
    assert choices.PROMPTS == LABEL_KINDS and tuple(CHANGES) == choices.CHANGES and tuple(PAPERS) == choices.PAPERS
    assert set(choices.VOLUME_RULES) == set(VOLUME_RULES) and tuple(FOUNDATION_MODELS) == choices.FOUNDATION_MODELS
    assert tuple(datasets_commands.CONVERTERS) == choices.CONVERTERS and tuple(STRUCTURES) == choices.STRUCTURES
    assert choices.PHANTOM_LAYOUTS == LAYOUTS and choices.LABELLED_FRAMES == LABELS


def test_the_trainers_are_in_the_help_of_train():
    shown = scripts.parser_of("train").format_help()
    assert all(re.search(rf"^  {name} +\w", shown, re.M) for name in choices.TRAINERS)
    assert "docs/trainers.md" in shown
