"""Sweeps: which job is which, what became of it, and a study that several processes and machines share."""
