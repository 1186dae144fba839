"""Measurements: closed-loop episodes, workloads and peers. Peers and torch are imported only when they are run."""
