"""Checkpoints on a disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.training.checkpoint import load_checkpoint, save_checkpoint


def test_a_full_disk_keeps_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint_latest.pth"
    save_checkpoint(file, {"network": {"w": torch.ones(3)}})

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EchoPlanError, match="the disk is full") as caught:
        save_checkpoint(file, {"network": {"w": torch.zeros(3)}})
    assert caught.value.fatal and list(tmp_path.iterdir()) == [file]
    assert torch.equal(load_checkpoint(file)["network"]["w"], torch.ones(3))
