"""The tab key: what the shell offers is what the commands take."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from echoplan import scripts

BASH = shutil.which("bash")
LINES = {
    ("echoplan", "pred"): ["predict"],
    ("echoplan", "compl"): ["completion"],
    ("echoplan", "train", "--stop"): ["--stop_after"],
    ("echoplan_predict", "-i", "x", "--over"): ["--overwrite", "--overlays"],
    ("echoplan_train", "A", "0", "-tr", "UNetTrainer", "E3"): ["E3SAM2Trainer", "E3SAM2SmallTrainer"],
    ("echoplan_zero_shot", "A", "-m", ""): ["sam", "medsam", "lite_medsam", "sam2"],
    ("echoplan_zero_shot", "-m", "sam", "m"): [],  # -m takes one: what follows is a file or a name
    ("echoplan_convert_dataset", "ec"): ["echonet_dynamic"],
    ("/home/me/bin/echoplan_reproduce", "e3"): ["e3sam2"],
}


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_bash_offers_commands_options_and_values(tmp_path, capsys):
    assert scripts.echoplan(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for words in LINES:
        quoted = " ".join(f"'{word}'" for word in words)
        script += f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _echoplan_complete; echo "${{COMPREPLY[*]}}"\n'
    done = subprocess.run([BASH, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    offered = [line.split() for line in done.stdout.split("\n")[:-1]]
    assert dict(zip(LINES, map(sorted, offered), strict=True)) == {words: sorted(new) for words, new in LINES.items()}


def test_zsh_takes_the_same_by_its_bashcompinit(capsys):
    assert scripts.echoplan(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit && bashcompinit\n_echoplan_complete() {")
    with pytest.raises(SystemExit):
        scripts.echoplan(["completion", "fish"])
