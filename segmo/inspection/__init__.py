"""Looking inside: what SegMo does to a model of which only the config is at hand, as text and as a page."""
