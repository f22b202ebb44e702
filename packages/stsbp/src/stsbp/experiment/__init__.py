"""A preset over seeds: trained into one folder, and reported as one table."""

from __future__ import annotations
