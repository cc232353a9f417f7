"""The web edge: what operators and Kubernetes ask over HTTP."""
