"""The report of a run: one HTML file that opens anywhere, a summary in Markdown, pictures for a README.

It reads what the stages left in the run folder and measures nothing.
"""
