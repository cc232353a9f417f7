"""The edges that the platform talks to: they decode, call and encode."""
