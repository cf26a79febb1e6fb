"""A world of users, admins, agents that fail in every way, and machines that crash.

Real server processes are asked over HTTP by several users at once, and killed, stopped, frozen and
cut off from their database meanwhile. Again and again all rows are read at one moment and held
against the invariants of `invariants.py`, of which the first is that a job's row is what its log
says (`fold.py`).

What is done comes from a seed, which a failure prints with the steps so far; when the machine does
what is the operating system's affair, so a seed repeats a story, not its every interleaving.

    SIGNOFF_SIMULATION_SEED=7 SIGNOFF_SIMULATION_STEPS=20000 pytest tests/simulation

runs one story of that length on each database. Without them the story is always the same, and as
short as CI wants it. Many short stories find more than a long one:

    for seed in $(seq 100); do SIGNOFF_SIMULATION_SEED=$seed pytest -x tests/simulation; done

What is new in the product goes into the tables `ACTIONS`, `FAULTS`, `WAYS` (of agents to answer),
`EFFECTS` and `STEPS` (of entries on a job) and the invariants; `test_invariants.py` lies about
true rows, to see that each lie is found.
"""
