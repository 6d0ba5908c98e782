"""The colours of reports, plots and overlay videos, which mean the same in all of them."""

from __future__ import annotations

# Okabe and Ito's palette: told apart with every common kind of colour blindness. Shapes and line styles differ too.
OUTLINE, AXIS, ED_COLOUR, ES_COLOUR = "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
INK, SOFT, PALE, LINE = "#1f2933", "#52606d", "#9aa5b1", "#e4e7eb"
