"""How a backend computes a network: the plan, the passes, the trainer."""
