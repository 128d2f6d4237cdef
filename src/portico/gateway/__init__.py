"""The gateway: public listener and data plane. No database, no scheduler, no pages; never root, never a user's file."""
