"""The OpenAI-compatible HTTP API and the web page, over `client`, in the same trio run."""
