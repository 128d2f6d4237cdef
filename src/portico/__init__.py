"""Portico, the front door of an HPC system; docs/design.md has the picture that the folders repeat."""
