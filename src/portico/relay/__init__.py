"""The relay: one file that is copied into a session's job on another machine, and dials out from there."""
