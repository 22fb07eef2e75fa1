"""Reads, changes and writes the byte code of CPython 3.11 to 3.14.

``assembly`` turns a code object into a list of instructions and back: jumps, the exception
table and the table of lines follow what is put between. ``emitter`` writes the few
instructions that calls need, in the form that each version wants. ``weaving`` puts the calls
of probes into a function's code.
"""
