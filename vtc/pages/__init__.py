"""What fills README and docs from result files and from the code itself: `python -m vtc.pages.readme`."""
