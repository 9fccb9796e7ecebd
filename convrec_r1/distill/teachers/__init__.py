"""Whom Stage 1 asks: one protocol, a module a teacher, and the interview that gets every answer once."""
