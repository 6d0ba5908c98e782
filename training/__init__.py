"""Training: one fixed trainer class a method, the loop, the data, the losses."""
