"""What lies on volumes: how it is backed up and how it comes back."""
