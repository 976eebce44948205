"""The factory in virtual time: the real control core over modelled machines, seeded and repeatable.

Nothing here reads a clock or the network. The way in is ``rehearse.rehearse``, whose result ``plan`` shows.
"""
