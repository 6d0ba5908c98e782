"""What every command does alike: errors in one line, exit statuses, whole option names."""

from __future__ import annotations

import argparse
import configparser
import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from echoplan import __version__, cli
from echoplan.errors import EchoPlanError


def console_scripts():
    """name -> "module:function" of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.replace(" ", "").split("=") for line in lines if line)


def script(name):
    module, function = console_scripts()[name].split(":")
    return getattr(importlib.import_module(module), function)


def raising(error):
    @cli.command()
    def main(arguments):
        raise error

    return main


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
        ("", ["-d", "A"], "again"),
        ("", ["--overwrite"], "without --overwrite"),
        ("--c", ["A", "0"], "with --c"),
        ("--c", ["A", "0", "--overwrite"], "with --c instead of --overwrite"),
        ("--c", ["A", "0", "--c"], "again"),
    ],
)
def test_a_command_says_how_it_goes_on(resume, arguments, how, capsys):
    @cli.command(resume=resume)
    def main(_):
        raise KeyboardInterrupt

    assert main(arguments) == 130
    assert f"run the same command {how} to go on." in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_named(number, capsys):
    assert raising(OSError(number, os.strerror(number), "/results/x"))([]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: /results/x may not be written") and "folder of yours" in shown


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())([])


def test_a_command_hands_its_arguments_and_status_on(monkeypatch):
    seen = []

    @cli.command()
    def main(arguments):
        seen.append(arguments)
        return 3

    monkeypatch.setattr(sys, "argv", ["echoplan_x", "-i", "in"])
    assert main() == 3 and main(("-o", "out")) == 3 and main([]) == 3
    assert seen == [["-i", "in"], ["-o", "out"], []]
    assert main.__name__ == "main"


def made_parser():
    parser = cli.parser("echoplan_x", "Do x.")
    parser.add_argument("--gpu_memory_target", type=float, default=8, help="GB")
    cli.add_processes(parser)
    cli.add_device(parser)
    cli.add_plans_name(parser)
    return parser


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
        cli.parser("echoplan_x", "").parse_args(["--version"])
    assert caught.value.code == 0 and __version__ in capsys.readouterr().out


def test_failures_are_named_with_their_reasons(capsys):
    assert cli.report_failures({}, work="prediction") == 0
    assert capsys.readouterr() == ("", "")
    assert cli.report_failures({"a": "no spacing", "b": "KeyError: 'x'"}, work="prediction") == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["2 not done (prediction):", "  a: no spacing", "  b: KeyError: 'x'"]
    assert shown.out == ""


def test_a_path_that_must_exist(tmp_path):
    assert cli.existing_path(str(tmp_path)) == tmp_path
    with pytest.raises(argparse.ArgumentTypeError, match="does not exist"):
        cli.existing_path(str(tmp_path / "nothing"))


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
        "from echoplan import cli\nimport sys\n@cli.command()\ndef main(_):\n    print('x' * 1_000_000)\n    return 0\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program + "sys.exit(main([]))"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert run.stdout.read(1) == "x"
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == cli.READER_GONE


def test_ctrl_c_while_a_command_is_still_imported_is_met_like_any_other(monkeypatch, capsys):
    def interrupted(module):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", interrupted)
    assert cli.script("echoplan.training.commands:train")([]) == cli.INTERRUPTED
    assert "run the same command again" in capsys.readouterr().err


def test_the_scripts_themselves_import_nothing_heavy():
    program = "import sys, echoplan.scripts; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=False)
    assert run.returncode == 0
