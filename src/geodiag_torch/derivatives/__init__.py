"""Losses, gradients and Hessian-vector products of a module.

batches            batches on a device, and their weights
forward            the loss of one batch, with tensors that replace the parameters
objective          the loss over the data as a function of the measured parameters
autograd           first and second derivatives of a loss
graph_inspection   what an autograd graph tells: precision, missing second derivatives
kept_graph         products on a graph that is kept
evaluation         sums over batches and ranks
fallback           finite differences, and independent products to estimate errors
crosscheck         whether two ways of computing products agree
"""
