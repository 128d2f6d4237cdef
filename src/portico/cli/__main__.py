"""``python -m portico.cli`` is the ``portico`` command."""

from portico.cli import main

if __name__ == "__main__":
    main()
