"""What was done to a model: records of graphs and prefills, as text, JSON and one HTML page."""
