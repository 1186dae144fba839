"""Training of world models: offline data, objectives at work, checkpoints, diagnostics. Needs the extra ``train``."""
