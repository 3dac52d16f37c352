"""Reports on records, for people.

plotting   figures
series     the numbers that a figure shows
html       the HTML report: one file with a figure and a table
watch      a live table in the terminal
"""
