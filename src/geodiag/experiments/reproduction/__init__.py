"""``geodiag reproduce``: the experiments of arXiv 2603.05002, on small data, in either framework.

cells       what is run: methods × models, with the learning rate and the length of each
data        digits, characters, or CIFAR-10 from a folder; and the first weights
frameworks  the packages that a framework needs, and its trainer
training    the training loop: measure, step, measure the step; the demo's too
measuring   one cell: the loop, with checks of S and D
observed    one cell of an optimizer as people use it: by a Monitor
runner      all cells, two at a time; finished ones are kept
quadratics  Section 5: below 2/S linear convergence, above it divergence from a line
results     a cell's records as a few numbers, and in a table
figures     plots of the records
"""
