"""The Kubernetes API on raw JSON: requests and resumable watches. Knows nothing of sandboxes."""
