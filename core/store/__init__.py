"""Trials and verdicts <-> runs/ (the journal) <-> runs.duckdb; all the SQL is here.

* journal     run folders and verdicts, whole or not there
* connection  runs.duckdb with its schema, open for a moment
* ingestion   what the journal has and the database has not
* history     what is known in a context
"""
