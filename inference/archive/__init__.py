"""Models as single files: exported here, installed on another machine, without names of patients and without tricks."""

from .export import export_model
from .install import InstalledModel, install_model
from .manifest import Manifest
from .published import install_published

__all__ = ["InstalledModel", "Manifest", "export_model", "install_model", "install_published"]
