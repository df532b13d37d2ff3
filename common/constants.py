"""Numbers that stand for something in more than one package."""

IGNORED = -100  # the label of a position that is not predicted
PADDING = 0  # the token id that fills an entry up to its length; it is not read
NO_DOCUMENT = -1  # of an entry that was not cut from the training text
NO_ENTRY = -1  # the row of no entry: nothing was found
MASKED = -1e4  # far below any logit, yet finite: a row in which all keys are masked stays free of NaN
