"""A real Slurm on one machine, for trying Portico and for its tests: every node in namespaces of its own."""

from portico.demo.cluster import DemoCluster

__all__ = ["DemoCluster"]
