"""Sandboxes in a cluster: this room writes `Sandbox` resources and waits for what the operator makes of them."""
