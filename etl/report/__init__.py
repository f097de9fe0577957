"""What does the page say? Rows of the views become figures, figures become charts, and all of it one HTML file."""
