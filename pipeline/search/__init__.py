"""Candidates: drawn, timed, rejected or trained, told; the choice."""
