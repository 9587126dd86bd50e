"""How verdicts are shown: as text, Markdown, JSON, JUnit XML, rows of W&B, and one HTML page."""
