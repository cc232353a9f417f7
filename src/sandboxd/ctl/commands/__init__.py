"""What the commands of sandboxctl do; their options are declared in `ctl/app.py`."""
