"""Export of trained networks for other programs, and import of networks of other programs."""
