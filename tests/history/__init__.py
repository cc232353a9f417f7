"""A recorded history of several clients, while everything around them breaks, checked against a small model afterwards.

`record` is what is written down, `check` is pure and says what must not have happened, `run` drives a real stack.
"""
