"""The agent acts as one user: files, terminals, app sockets. It never has another uid than that user's."""
