"""The way between replicas: errands over gRPC with mutual TLS, and errors that arrive as they were raised."""
