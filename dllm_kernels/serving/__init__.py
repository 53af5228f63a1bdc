"""OpenAI-compatible HTTP on Ray Serve. Ray is imported where it is used, never by importing this package."""
