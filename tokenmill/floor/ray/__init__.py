"""The floor of a Ray cluster: nodes that come and go, an agent on each, and one head beside the controller.

Ray carries orders and reports between machines and starts the agents; our own placement says where each
worker goes. Tokens never pass through Ray: the gateway streams from an engine's own port. Needs the ``ray``
extra, and one data directory that every node sees under the same path.
"""
