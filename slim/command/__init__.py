"""The program ``slim``: Hydra composes, commands call the public API; nothing below knows Hydra."""
