"""Other wire formats than the engine's own: Responses, Anthropic's Messages, rerank and score.

Each is one class per request that reads a body into a chat (or embeddings) request and turns the engine's
answer back. They do no I/O and settle nothing: the exchange behind them does.
"""
