"""Schedulers: where work waits and runs. One protocol; `local` is the embedded one. Standard library only."""
