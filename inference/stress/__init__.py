"""How a model holds up where clips get worse: `echoplan_stress`."""

from .certificate import Certificate, stress_model
from .changes import CHANGES, Change, LabelledClip

__all__ = ["CHANGES", "Certificate", "Change", "LabelledClip", "stress_model"]
