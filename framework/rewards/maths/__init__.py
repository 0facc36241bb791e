"""Comparing a mathematical answer to a reference, in steps of which each can refuse.

text: clean what is written. tokens and parser: read it, whole or not at all. values: compute it, within bounds, and
say whether it is a finished value. quantities: units, phrases and option letters around it. statements: what says the
same in other words, and numbers written in Chinese. moments: times, dates, quantities in two units. verdict: do the two
agree?
"""
