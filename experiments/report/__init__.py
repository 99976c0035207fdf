"""Render results: Markdown, CSV, LaTeX, the page, plots and figures."""
