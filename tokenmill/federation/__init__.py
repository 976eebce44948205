"""Factories that trust each other: who they are, what they offer, and the secrets to ask them with.

Decides nothing about a request: ``policy.route`` uses a peer when no replica of ours can be used, and
``policy.reside`` has removed those where a tenant's data may not be.
"""
