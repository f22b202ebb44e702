"""Trained networks as folders that the Hugging Face Hub stores: written, read, sent and downloaded."""
