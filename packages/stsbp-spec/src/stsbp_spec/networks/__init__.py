"""Networks: their notations, their graph, and the operations at its nodes."""
