"""The floor carries out what ``control`` decided and reports what happened.

``runtime`` is the loop that joins the journal, the control core and a floor; ``local`` is the floor of
processes on this machine.
"""
