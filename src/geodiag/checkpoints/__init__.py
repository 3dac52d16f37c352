"""From saved checkpoints to records: a table, a log and a figure. Nothing in a file is executed.

measurement  the measurement of one checkpoint after another, in one norm or several
identity     which version of a checkpoint a record is of
factory      ``package.module:function``, which makes the model, the loss and the data
measure      the command ``geodiag measure``

What a file holds is read by the adapters' ``geodiag_checkpoint``.
"""

from geodiag.checkpoints.measurement import along

__all__ = ["along"]
