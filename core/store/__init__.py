"""Trials and verdicts <-> runs/ (the journal) <-> runs.duckdb; all the SQL is here."""

from core.store.database import Held, Ingested, ingest, opened
from core.store.history import History, past_words, read_history
from core.store.journal import Journal, new_id

__all__ = [
    "Held",
    "History",
    "Ingested",
    "Journal",
    "ingest",
    "new_id",
    "opened",
    "past_words",
    "read_history",
]
