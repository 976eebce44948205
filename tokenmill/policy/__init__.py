"""Decisions as pure functions of ``(view, request, now)``: no clock, no randomness, no I/O, no mutation.

What a policy remembers is an explicit frozen value that goes in and comes out, and every "no" lists its
reasons. Imports only ``domain``.
"""
