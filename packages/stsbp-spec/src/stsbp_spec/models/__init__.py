"""What a network is made of and trained with: neurons, surrogates, losses, encoders, decoders, the optimiser."""
