"""The trainers: one class a method, found by name."""

from .base import EchoTrainer
from .registry import find_trainer, trainer_registry

__all__ = ["EchoTrainer", "find_trainer", "trainer_registry"]
