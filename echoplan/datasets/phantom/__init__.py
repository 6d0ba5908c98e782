"""Simulated echocardiograms whose volumes, ejection fractions and masks are known exactly."""

from echoplan.datasets.phantom.patient import (
    PhantomClip,
    PhantomPatient,
    PhantomSettings,
    make_patient,
)
from echoplan.datasets.phantom.write import make_phantom_dataset, volume_tracing

__all__ = [
    "PhantomClip",
    "PhantomPatient",
    "PhantomSettings",
    "make_patient",
    "make_phantom_dataset",
    "volume_tracing",
]
