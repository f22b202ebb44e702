"""GPU kernels without a GPU: an interpreter of PTX (`ptx`), and what runs the project's kernels in it. Not shipped."""
