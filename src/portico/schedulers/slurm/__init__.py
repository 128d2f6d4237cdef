"""Slurm, through its own commands: pure pairs of a command and its parser, and one class that has them run.

Nothing here links a Slurm library or starts a process; whoever runs a Command decides as whom. Written against
22.05.8, with options that are in 20.11 to 24.11.
"""
