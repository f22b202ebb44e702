"""Processes and devices that train one network together."""
