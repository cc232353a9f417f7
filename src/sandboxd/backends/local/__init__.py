"""Sandboxes as plain processes of this machine, for development: isolates nothing."""
