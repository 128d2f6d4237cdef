"""SSH: configuration for OpenSSH, and what its programs are asked and answered. No SSH code of our own."""
