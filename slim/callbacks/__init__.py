"""Lightning callbacks, one per file. Nothing is imported here: Lightning is heavy, and each user needs one or two."""
