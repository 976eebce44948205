"""Seeded worlds that try to break the control core: people, a floor that lies, checkers of the invariants."""
