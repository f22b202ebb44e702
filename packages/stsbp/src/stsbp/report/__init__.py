"""Runs that people can look at: one HTML file that needs no network, and runs side by side."""
