"""Factories that trust each other: what they offer, what they bill, and the secrets to ask them with.

Decides nothing about a request: ``policy.route`` uses a peer when no replica of ours can be used, and
``policy.reside`` has removed those where a tenant's data may not be.
"""
