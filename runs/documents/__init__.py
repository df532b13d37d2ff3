"""Documents whose numbers come from rows: `python -m experiment documents` writes them, `check` compares them.

A generated table stands between <!-- begin:NAME --> and <!-- end:NAME -->; `tables.py` makes it. A single value in a
sentence stands between <!--v:KEY--> and <!--/v-->; `rows.py` says what a KEY is. Figures are SVG files, each for light
and for dark pages; `figures.py` draws them from rows and stored curves, `drawing.py` draws the memory.
"""
