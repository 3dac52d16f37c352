"""Reports on records, for people.

plotting   figures of runs
panels     what is drawn on one set of axes, and the legends
scales     vertical axes on which the edge is seen
styles     colours, line styles, fonts and sizes
figure     a figure that shows itself in a notebook
series     the numbers that a figure shows
html       the HTML report: one file with a figure and a table
interactive   the figure of that page where plotly is installed
watch      a live table in the terminal
"""
