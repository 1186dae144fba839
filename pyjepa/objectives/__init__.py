"""Objectives that train a joint-embedding predictive architecture without collapse (paper section 4.5)."""
