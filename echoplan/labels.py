"""The one label value that means something everywhere. This module imports nothing."""

IGNORE = 255  # pixels and frames that nobody labelled: no loss and no metric counts them
