"""The OpenAI edge: parse, identify, admit, route, relay, meter, settle.

One process on one event loop. It serves from its last table while the controller is away and never
talks to the store: what it settles goes to a spool file, which the controller reads.
"""
