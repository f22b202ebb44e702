"""Convolutions that skip the zeros: spikes choose the rows of the weights, forward and in the weight gradient.

A block (pooling, dropout, convolution, filter, neurons) is computed sample by sample with everything in the cache:
`z` never reaches memory. On the weight grid the sums are exact in any order, so the bits are those of the dense path.
"""
