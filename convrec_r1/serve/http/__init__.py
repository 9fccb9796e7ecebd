"""A policy over HTTP: FastAPI's application, and uvicorn around it (docs/serve.md)."""
