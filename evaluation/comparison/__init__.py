"""Methods side by side on the same cases: figures of each, paired tests, learning curves, tables."""
