"""The parts of ``bench/gateway.py``: peers, load generators, measurements, and how their figures are told.

The gateway is reached only as its users reach it: ``portico.gateway.process.serve`` in a process of its own, and a
portal's side of docs/protocol.md. Nothing here knows what is inside it.
"""
