"""The whole stack on one machine: `sandboxd dev` and `sandboxd demo`."""
