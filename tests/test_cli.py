"""What every command does alike: errors in one line, exit statuses, whole option names."""

from __future__ import annotations

import argparse
import configparser
import errno
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from echoplan import __version__, cli, scripts
from echoplan.errors import EchoPlanError
from echoplan.options import shared
from echoplan.options.parser import parser


def console_scripts():
    """name -> "module:function" of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.replace(" ", "").split("=") for line in lines if line)


def script(name):
    module, function = console_scripts()[name].split(":")
    return getattr(importlib.import_module(module), function)


def running(main, *, resume=False):
    """A console script of an option-less command, but for --overwrite and, where it needs one, --c."""

    def options():
        made = parser("echoplan_x", "Do x.", examples=["echoplan_x"])
        made.add_argument("words", nargs="*")
        shared.add_overwrite(made)
        if resume:
            shared.add_continue(made, "go on")
        return made

    return cli.command(options, main)


def raising(error, **more):
    def main(chosen):
        raise error

    return running(main, **more)


def test_an_error_for_people_is_one_line_and_exit_1(capsys):
    main = raising(EchoPlanError("the frame time is zero", file="a.dcm", remedy="give it in cases.csv"))
    assert main([]) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: the frame time is zero (a.dcm). What to do: give it in cases.csv.\n"
    assert shown.out == ""


def test_a_full_disk_is_named_wherever_it_is_met(capsys):
    assert raising(OSError(28, "No space left on device", "/results/log.txt"))([]) == 1
    assert capsys.readouterr().err.startswith("error: the disk is full (/results/log.txt). What to do: free some space")


def test_ctrl_c_is_exit_130_without_a_traceback(capsys):
    assert raising(KeyboardInterrupt())([]) == 130
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and "run the same command again" in shown.err


@pytest.mark.parametrize(
    ("resume", "arguments", "how"),
    [
        (False, ["A"], "again"),
        (False, ["--overwrite"], "without --overwrite"),
        (True, ["A", "0"], "with --c"),
        (True, ["A", "0", "--overwrite"], "with --c instead of --overwrite"),
        (True, ["A", "0", "--c"], "again"),
        (True, ["A", "0", "--continue"], "again"),
    ],
)
def test_a_command_says_how_it_goes_on(resume, arguments, how, capsys):
    assert raising(KeyboardInterrupt(), resume=resume)(arguments) == 130
    assert f"run the same command {how} to go on." in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_named(number, capsys):
    assert raising(OSError(number, os.strerror(number), "/results/x"))([]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: /results/x may not be written") and "folder of yours" in shown


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())([])


def test_a_command_hands_its_options_and_status_on(monkeypatch):
    seen = []

    def main(chosen):
        seen.append(chosen.words)
        return 3

    monkeypatch.setattr(sys, "argv", ["echoplan_x", "in"])
    assert running(main)() == 3 and running(main)(("a", "b")) == 3 and running(main)([]) == 3
    assert seen == [["in"], ["a", "b"], []]


def test_quiet_and_verbose_change_what_is_logged(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def main(chosen):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger("echoplan.somewhere").log(level, "of level %d", level)
        print("a result")
        raise EchoPlanError("it does not work")

    assert running(main)([]) == 1
    shown = capsys.readouterr()
    assert shown.out == "a result\n" and shown.err == "of level 20\nof level 30\nerror: it does not work.\n"
    assert running(main)(["--quiet"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "a result\n" and shown.err == "of level 30\nerror: it does not work.\n"
    assert running(main)(["--verbose"]) == 1
    shown = capsys.readouterr().err
    assert "echoplan.somewhere: of level 10\n" in shown and "Traceback" in shown and shown.endswith("not work.\n")
    assert running(main)([]) == 1  # neither stays for the next command of the process
    assert capsys.readouterr().err.startswith("of level 20\n")


def made_parser():
    made = parser("echoplan_x", "Do x.", examples=["echoplan_x"])
    made.add_argument("--gpu_memory_target", type=float, default=8, help="GB")
    shared.add_processes(made)
    shared.add_device(made)
    shared.add_plans_name(made)
    return made


@pytest.mark.parametrize(
    "arguments",
    [["--unknown"], ["--gpu_memory", "4"], ["--dev", "cpu"], ["--device", "tpu"], ["-np", "-1"], ["-np", "many"],
     ["-np", "²"], ["stray"]],
)  # fmt: skip
def test_unknown_shortened_and_wrong_options_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        made_parser().parse_args(arguments)
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.endswith("echoplan_x --help shows what there is.\n")
    assert shown.count("\n") == 1 and "_count" not in shown


def test_the_common_options():
    options = made_parser().parse_args(["-np", "0", "--device", "cpu", "-p", "Mine"])
    assert (options.np, options.device, options.plans_name) == (0, "cpu", "Mine")
    defaults = made_parser().parse_args([])
    assert (defaults.device, defaults.plans_name) == ("auto", "EchoPlans")
    assert 1 <= defaults.np <= 8


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        made_parser().parse_args(["--version"])
    assert caught.value.code == 0 and __version__ in capsys.readouterr().out


def test_failures_are_named_with_their_reasons(capsys):
    assert cli.report_failures({}, work="prediction") == 0
    assert capsys.readouterr() == ("", "")
    assert cli.report_failures({"a": "no spacing", "b": "KeyError: 'x'"}, work="prediction") == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["2 not done (prediction):", "  a: no spacing", "  b: KeyError: 'x'"]
    assert shown.out == ""


def test_a_path_that_must_exist(tmp_path):
    assert shared.existing_path(str(tmp_path)) == tmp_path
    with pytest.raises(argparse.ArgumentTypeError, match="does not exist"):
        shared.existing_path(str(tmp_path / "nothing"))


def test_folders_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("echoplan_raw", str(tmp_path))
    assert cli.folders().raw == tmp_path


@pytest.mark.parametrize("name", console_scripts())
def test_every_command_shows_help_under_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as caught:
        script(name)(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


@pytest.mark.parametrize("name", console_scripts())
def test_every_command_refuses_an_unknown_or_shortened_option(name, capsys):
    for option in ("--no_such_option", "--versio"):  # the other would print the version and exit with 0
        with pytest.raises(SystemExit) as caught:
            script(name)([option])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and f"{name} --help" in said and said.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    """echoplan_... | head -1"""
    program = (
        "from echoplan import cli, scripts\nimport sys\ndef main(_):\n    print('x' * 1_000_000)\n    return 0\n"
        "sys.exit(cli.command(scripts.umbrella, main)([]))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert run.stdout.read(1) == "x"
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == cli.READER_GONE


def test_ctrl_c_while_a_command_is_still_imported_is_met_like_any_other(monkeypatch, capsys):
    def interrupted(module):
        raise KeyboardInterrupt

    monkeypatch.setattr(scripts, "import_module", interrupted)
    assert scripts.train(["A", "0"]) == cli.INTERRUPTED
    assert "run the same command again" in capsys.readouterr().err
