"""Joins the rooms: makes every object of a role from the settings, runs it, and ends it in order.

The only place that knows which adapter implements which port. Its modules import the rooms they join, so a role that is
not started costs nothing.
"""
