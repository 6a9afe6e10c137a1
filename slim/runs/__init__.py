"""Runs: phases, run directory, resume and report, for any LightningModule and LightningDataModule."""
