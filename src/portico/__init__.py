"""Portico, the front door of an HPC system. docs/design.md has the picture; each folder is a process or a noun of it."""
