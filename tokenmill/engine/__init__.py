"""Inference engines and trainers: how each kind is started, asked, watched and stopped.

Starts no process of its own account (the floor does) and knows no artifact store: it is given paths.
"""
