"""Claims made for capsules, put to the test: what studies share, and for each claim its section;
report.py puts them together.
"""
