"""The report as one HTML page: what is on it (Python) and how it looks (templates)."""
