"""Entities, states and rules of sandboxd: pure, without I/O, without a clock, standard library only."""
