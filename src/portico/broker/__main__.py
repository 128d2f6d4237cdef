"""Start of the broker process; see server.py."""

from portico.broker.server import main

main()
