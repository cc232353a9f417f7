"""Certificates in files, for whoever listens: read again when they change, without a restart."""
