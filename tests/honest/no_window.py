"""Let every block see the whole row."""

WINDOW_PATTERN = "L"
