"""Convolutions that skip zeros: spikes select rows of the weights in the forward pass and in the weight gradient.

A block (pooling, dropout, convolution, filter, neurons) is computed sample by sample with everything in the cache, so
`z` is never written to memory. On the weight grid, the sums are exact in any order, so their bits are the same as with
dense kernels.
"""
