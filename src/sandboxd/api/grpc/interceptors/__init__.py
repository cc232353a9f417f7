"""The frame around every RPC: log, metrics, errors, deadline, caller, validation, in this order from outside."""
