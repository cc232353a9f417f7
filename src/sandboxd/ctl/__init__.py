"""sandboxctl, the person's client of the gRPC service."""
