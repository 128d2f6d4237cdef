"""The parts of ``bench/workshop.py``: seats with desktops, live clients, the classical set-up, and what is told."""
