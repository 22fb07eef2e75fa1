"""Random programs, run bare and under random probes, must do the same.

``world`` is what the programs are made in: what they note, and what bounds them. ``programs``
writes one, out of ``parts``; ``scripts`` says what is done with it (calls, probes between them);
``running`` does that, and says what was to be seen; ``shrinking`` makes a failing one small.

    python tests/engine/random_programs 17            # the program of seed 17, and how it differs
    python tests/engine/random_programs 17 --show     # the same, its text first
    python tests/engine/random_programs 0:5000        # all of these; goes on after a crash
"""
