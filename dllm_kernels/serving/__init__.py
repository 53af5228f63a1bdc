"""Serving: OpenAI-compatible HTTP, and replicas that batch the rows of many requests. Only ray_serve.py needs Ray."""
