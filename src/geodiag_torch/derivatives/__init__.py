"""Losses, gradients and Hessian-vector products of a module.

forward        the loss of one batch, with tensors lent to the module
graph          products on a kept graph
evaluation     sums over batches and ranks
fallback       finite differences, and independent products to check against
crosscheck     whether two ways of computing products agree
precision, float32_copy, padding, reentrant: special cases of these
"""
