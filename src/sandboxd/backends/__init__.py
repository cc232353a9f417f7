"""Where sandboxes are placed, each behind the same port."""
