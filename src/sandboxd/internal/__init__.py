"""The contract among replicas of one installation: `v1` is generated from `proto/sandboxd/internal/v1`."""
