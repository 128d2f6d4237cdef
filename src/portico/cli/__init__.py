"""The command line and the composition root: it alone builds the objects of the other packages and hands them to each
other.

Never here: rules about who may do what (accounts), about sessions (sessions), or SQL (store). This file imports
nothing, because ``./portico`` runs :mod:`portico.cli.install` with the system's Python, before there is any package.
"""


def main() -> None:
    """Run the ``portico`` command."""
    from portico.cli.main import run

    run()
