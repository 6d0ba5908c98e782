"""EchoPlan: left-ventricle masks and ejection fractions from 2D echocardiography, planned from the data itself."""

from pathlib import Path

__version__ = "0.1.0"

# The stages (training, inference, ...) lie beside this folder in a checkout and inside it once installed. Looking into
# the checkout's root as well lets `python -m pytest` and scripts run from a clone without an install.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file():
    __path__.append(str(_checkout))
