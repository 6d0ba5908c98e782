"""report.html: the page, its figures and pictures."""
