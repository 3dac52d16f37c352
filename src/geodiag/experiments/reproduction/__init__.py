"""``geodiag reproduce``: the experiments of arXiv 2603.05002, on small data, in either framework.

cells       what is run: methods × models, with the learning rate and the length of each
data        digits, characters, or CIFAR-10 from a folder; and the weights that runs start from
measuring   one cell: train, measure every few steps
runner      all cells, two at a time; finished ones are kept
quadratics  Section 5: below 2/S linear convergence, above it divergence from a line
table       what came out, in numbers; figures: in pictures
"""
