"""What a session shows when it is over."""

JSON_VERSION = 1  # of every JSON document: docs/json.md
