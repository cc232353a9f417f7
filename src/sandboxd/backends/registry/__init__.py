"""The registry port on the OCI distribution API."""
